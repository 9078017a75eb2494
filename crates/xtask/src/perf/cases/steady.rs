//! A broker whose log is as old as it gets: what is trimmed is what is written next.

use anyhow::{Result, ensure};
use serde_json::Value;

use super::BULK;
use crate::perf::Bench;
use crate::perf::peers::fresh;
use crate::perf::server::{Server, number};

const STREAM: &str = "steady";
/// What a run writes stays below this, so that all of it can be verified.
const RETAINED_GIB: u64 = 12;

/// A server on a stream that has trimmed and recycled segments before anything is measured.
pub(super) struct Steady<'a> {
    bench: &'a Bench,
    server: Server,
    data: std::path::PathBuf,
}

impl<'a> Steady<'a> {
    pub(super) fn start(bench: &'a Bench, durability: &str) -> Result<Self> {
        let data = fresh(&bench.dir.join("flumen"))?;
        let often = ["--set", "broker.retention_interval_ms=100"];
        let server = Server::flumen_with(bench, &data, &often)?;
        server.run(
            bench,
            &format!(
                "stream create {STREAM} --durability {durability} --retention-bytes {RETAINED_GIB}GiB"
            ),
        )?;
        let records = (RETAINED_GIB << 20) * 5 / 4;
        let fill = format!("produce --stream {STREAM} {BULK} --records {records}");
        server.bench(bench, &fill)?;
        Ok(Self {
            bench,
            server,
            data,
        })
    }

    /// One run of `flumen bench`; the report, and the CPU seconds that the server took for it, its
    /// verification included.
    pub(super) fn run(&self, words: &str) -> Result<(String, Value, f64)> {
        let before = self.server.cpu_seconds()?;
        let words = format!("{words} --stream {STREAM}");
        let report = self.server.bench(self.bench, &words)?;
        ensure!(number(&report, "errors")? == 0.0, "errors in {report}");
        let cpu = self.server.cpu_seconds()? - before;
        Ok((format!("flumen bench {words}"), report, cpu))
    }

    pub(super) fn stop(self) -> Result<()> {
        drop(self.server);
        std::fs::remove_dir_all(&self.data)?;
        Ok(())
    }
}
