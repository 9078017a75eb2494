//! What stands in `examples/`, run against what a broker delivered.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cli::run;
use crate::process::BrokerProcess;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// A Python with DuckDB, as `cargo xtask test` installs it; none: the test says so and passes, unless
/// `CI` is `true`.
fn python() -> Option<PathBuf> {
    let named = std::env::var_os("FLUMEN_TEST_PYTHON").map(PathBuf::from);
    let ours = root().join("target/tools/venv/bin/python");
    let found = named.or_else(|| ours.is_file().then_some(ours));
    if found.is_none() {
        let ci = std::env::var_os("CI").is_some_and(|ci| ci == "true");
        assert!(!ci, "a Python with duckdb is missing, and this is CI");
        eprintln!("skipped: a Python with duckdb is missing; `cargo xtask tools` installs it");
    }
    found
}

/// Runs the script: its lines, or what it complains about.
fn read(python: &Path, words: &[&str]) -> Result<Vec<String>, String> {
    let script = root().join("examples/read_manifests.py");
    let mut command = Command::new(python);
    let ran = command.arg(script).args(words).output().expect("it runs");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    let (out, err) = (text(ran.stdout), text(ran.stderr));
    if ran.status.success() {
        return Ok(out.lines().map(str::to_owned).collect());
    }
    Err(err)
}

#[test]
fn manifests_are_read_from_python() {
    let Some(python) = python() else {
        return;
    };
    let dir = tempfile::tempdir().expect("a directory");
    let broker = BrokerProcess::start(&dir.path().join("data"));
    let flumen = |words: &str, input: &str| {
        let words = format!("--endpoint {} {words}", broker.endpoint);
        run(dir.path(), &words, input.as_bytes()).good()
    };
    flumen("stream create s --shards 2", "");
    // Of each kind, with names that mean something to DuckDB and to shells.
    let to = "delivery create NAME --stream s --to lake[1] --interval 15m";
    for (name, how) in [
        (
            "columns",
            "--format parquet --partition d=.d --prefix NAME/d=!{partitionKeyFromQuery:d}/ --error-prefix e/",
        ),
        ("lines", "--format ndjson --compression gzip --prefix NAME/"),
    ] {
        flumen(&format!("{to} {how}").replace("NAME", name), "");
    }
    let rows = |from: u32, value: &str| -> String {
        let rows = (from..from + 100)
            .map(|n| format!("{{\"d\":\"a*/{}\",\"n\":{n},\"value\":{value}}}\n", n % 3));
        rows.collect()
    };
    // The column's type grows from cut to cut, and there is a new one.
    for (from, value) in [(0, "1"), (100, "0.5"), (200, "\"text\",\"more\":true")] {
        flumen("produce s", &rows(from, value));
        flumen("delivery flush columns", "");
        flumen("delivery flush lines", "");
    }
    flumen("produce s", "no json\n");
    flumen("delivery flush columns", "");

    let lake = dir.path().join("lake[1]");
    let at = lake.to_str().expect("UTF-8");
    let ask = |name: &str, sql: &str| read(&python, &[at, "--delivery", name, "--sql", sql]);
    let counts = "select count(*), count(distinct n), sum(n), count(distinct d) from delivered";
    for name in ["columns", "lines"] {
        assert_eq!(ask(name, counts).expect("rows")[1], "300\t300\t44850\t3");
    }
    let failed = ask(
        "columns",
        "select count(*), sum(rows), sum(failed) from cuts",
    );
    assert_eq!(failed.expect("cuts")[1], "4\t300\t1");
    let kinds = "select kind, count(*), sum(records) from objects group by 1 order by 1";
    let kinds = ask("columns", kinds).expect("objects");
    assert_eq!(kinds[1..], ["data\t9\t300", "error\t1\t1"]);
    let both = read(&python, &[at]).expect_err("which one?");
    assert!(both.contains("columns, lines"), "{both}");

    // What a crash left does not count, and what is damaged is not read.
    let object = ask("columns", "select key from objects limit 1").expect("objects");
    let object = lake.join(&object[1]);
    let copy = object.with_file_name("left-behind.parquet");
    std::fs::copy(&object, copy).expect("a copy");
    assert_eq!(
        ask("columns", counts).expect("rows")[1],
        "300\t300\t44850\t3"
    );
    std::fs::write(&object, b"PAR1").expect("damage");
    let damaged = ask("columns", counts).expect_err("damage");
    assert!(
        damaged.contains("is not what its manifest says"),
        "{damaged}"
    );
}
