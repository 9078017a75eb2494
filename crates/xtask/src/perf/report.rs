//! `docs/performance.md`: the figures, each beside the command that made it.

use std::fmt::Write;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::{Row, Side, Target, median};
use crate::shell::output;

const BEGIN: &str = "<!-- figures: written by `cargo xtask perf` -->";
const END: &str = "<!-- end of figures -->";

/// One row for the person who watches.
pub(crate) fn line(row: &Row) -> String {
    let (verdict, held) = judge(row);
    format!("{}: {} — {held} {verdict}", row.id, row.what)
}

fn judge(row: &Row) -> (&'static str, String) {
    let ours = median(&row.ours.figures);
    let ratio = row
        .theirs
        .as_ref()
        .map(|theirs| ours / median(&theirs.figures));
    let shown = human(ours, row.unit);
    let verdict = |met: bool| if met { "met" } else { "**missed**" };
    match (&row.target, ratio) {
        (Target::Ratio(least), Some(ratio)) => (
            verdict(ratio >= *least),
            format!("{shown}, {ratio:.2} × (target {least} ×)"),
        ),
        (Target::Reported, Some(ratio)) => ("reported", format!("{shown}, {ratio:.2} ×")),
        (Target::AtLeast(least), _) => (
            verdict(ours >= *least),
            format!("{shown} (target ≥ {})", human(*least, row.unit)),
        ),
        (Target::AtMost(most), _) => (
            verdict(ours <= *most),
            format!("{shown} (target ≤ {})", human(*most, row.unit)),
        ),
        (Target::Ratio(_) | Target::Reported, None) => ("reported", shown),
    }
}

fn human(figure: f64, unit: &str) -> String {
    match unit {
        "B/s" => format!("{:.2} GB/s", figure / 1e9),
        "B" => format!("{:.1} MiB", figure / 1_048_576.0),
        "cores" => format!("{figure:.2} cores"),
        "s" => format!("{:.0} ms", figure * 1e3),
        _ if figure >= 1e6 => format!("{:.2} M{unit}", figure / 1e6),
        _ if figure >= 1e3 => format!("{:.0} k{unit}", figure / 1e3),
        _ => format!("{figure:.1} {unit}"),
    }
}

fn runs(side: &Side, unit: &str) -> String {
    let figures: Vec<String> = side
        .figures
        .iter()
        .map(|figure| human(*figure, unit))
        .collect();
    figures.join(" / ")
}

/// How a run was made, for the reader.
pub(crate) fn setting(quick: bool, memory_kept: bool) -> Result<String> {
    let revision = output(Command::new("git").args(["rev-parse", "--short", "HEAD"]))?;
    let kernel = output(Command::new("uname").arg("-r"))?;
    let cores = std::thread::available_parallelism()?;
    Ok(format!(
        "revision {}, Linux {}, {cores} cores, server and load on the same ones{}{}",
        revision.trim(),
        // Whose build of it is nobody's business.
        kernel.trim().split('-').next().unwrap_or_default(),
        if quick { ", quick run" } else { "" },
        if memory_kept {
            ", free memory kept touched (`--keep-memory`)"
        } else {
            ""
        }
    ))
}

/// A row as it stands in the page. Kept in a file, so that one comparison can be run again without
/// all others.
#[derive(serde::Serialize, serde::Deserialize)]
pub(crate) struct Written {
    setting: String,
    table: String,
    runs: String,
}

impl Written {
    pub(crate) fn of(row: &Row, setting: &str) -> Result<Self> {
        let (verdict, held) = judge(row);
        let peer = row.theirs.as_ref().map_or_else(
            || "–".to_owned(),
            |theirs| {
                format!(
                    "{}: {}",
                    theirs.name,
                    human(median(&theirs.figures), row.unit)
                )
            },
        );
        let table = format!(
            "| {} | {} | {held} | {peer} | {verdict} |",
            row.id, row.what
        );
        let mut text = String::new();
        writeln!(
            text,
            "- **{}** `{}`: {}",
            row.id,
            row.ours.command,
            runs(&row.ours, row.unit)
        )?;
        if let Some(theirs) = &row.theirs {
            writeln!(
                text,
                "  - {}: `{}`: {}",
                theirs.name,
                theirs.command,
                runs(theirs, row.unit)
            )?;
        }
        for note in &row.notes {
            writeln!(text, "  - {note}")?;
        }
        Ok(Self {
            setting: setting.to_owned(),
            table,
            runs: text,
        })
    }
}

/// The page between its two marks.
pub(crate) fn page(rows: &[Written]) -> Result<String> {
    let mut page = String::new();
    let mut settings: Vec<&str> = Vec::new();
    for row in rows {
        if !settings.contains(&row.setting.as_str()) {
            settings.push(&row.setting);
        }
    }
    for setting in settings {
        let of: Vec<&str> = rows
            .iter()
            .filter(|row| row.setting == setting)
            .filter_map(|row| row.table.split('|').nth(1).map(str::trim))
            .collect();
        writeln!(page, "Measured at {setting}: {}.\n", of.join(", "))?;
    }
    writeln!(
        page,
        "| | what | Flumen (median) | beside | verdict |\n|---|---|---|---|---|"
    )?;
    for row in rows {
        writeln!(page, "{}", row.table)?;
    }
    writeln!(
        page,
        "\nThe runs behind the medians, in order, and their commands:\n"
    )?;
    for row in rows {
        page.push_str(&row.runs);
    }
    Ok(page)
}

/// Replaces what stands between the marks, keeping what people wrote around them.
pub(crate) fn write(path: &Path, page: &str) -> Result<()> {
    let old = std::fs::read_to_string(path)
        .unwrap_or_else(|_| format!("# Performance\n\n{BEGIN}\n{END}\n"));
    let (before, rest) = old
        .split_once(BEGIN)
        .context("the page has lost its first mark")?;
    let (_, after) = rest
        .split_once(END)
        .context("the page has lost its last mark")?;
    std::fs::write(path, format!("{before}{BEGIN}\n{page}{END}{after}"))?;
    Ok(())
}
