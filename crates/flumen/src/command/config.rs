//! `flumen config`: what a node would run with.

use anyhow::Result;
use clap::Subcommand;
use serde::Serialize;
use serde_json::Value;

use super::serve::Settings;
use crate::cli::Context;

/// The verbs of `config`.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Say whether the settings are fine, and exit 1 when they are not
    Check(Settings),
    /// Show every setting, its value and where it comes from
    Show(Settings),
}

#[derive(Serialize)]
struct Shown<'a> {
    key: &'a str,
    value: &'a Value,
    origin: String,
}

/// Runs the command.
pub(crate) fn run(context: &mut Context, verb: &Verb) -> Result<()> {
    match verb {
        Verb::Check(settings) => check(context, settings),
        Verb::Show(settings) => show(context, settings),
    }
}

fn check(context: &mut Context, settings: &Settings) -> Result<()> {
    let resolved = settings.resolve()?;
    let changed = resolved.settings.iter();
    let changed = changed.filter(|(_, _, origin)| *origin != crate::config::Origin::Default);
    let changed = changed.count();
    if context.output.is_json() {
        let answer = serde_json::json!({ "valid": true, "changed": changed });
        Ok(context.output.json(&answer)?)
    } else {
        let line = format!("the settings are fine; {changed} differ in origin from the defaults");
        Ok(context.output.line(&line)?)
    }
}

fn show(context: &mut Context, settings: &Settings) -> Result<()> {
    let resolved = settings.resolve()?;
    if context.output.is_json() {
        for (key, value, origin) in &resolved.settings {
            context.output.json(&Shown {
                key,
                value,
                origin: origin.to_string(),
            })?;
        }
        return Ok(());
    }
    let width = |texts: &mut dyn Iterator<Item = usize>| texts.max().unwrap_or(0);
    let keys = width(&mut resolved.settings.iter().map(|(key, ..)| key.len()));
    let values: Vec<String> = resolved
        .settings
        .iter()
        .map(|(_, value, _)| text(value))
        .collect();
    let widest = width(&mut values.iter().map(String::len));
    for ((key, _, origin), value) in resolved.settings.iter().zip(&values) {
        context
            .output
            .line(&format!("{key:keys$}  {value:widest$}  {origin}"))?;
    }
    Ok(())
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => "(by itself)".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
