//! A delivery stream beside the consumers: the readings as Parquet files on disk, by device and hour,
//! and whether what its manifests name is what went in.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use flumen_client::delivery::{
    BufferingHints, DeliverySettings, Format, ObjectKeys, ParquetFormat, Partitioning, directory,
    from_stream, into,
};
use flumen_client::{Client, DeliveryName, StreamName};
use flumen_sink::{ManifestObject, Manifests, ReadBackError};
use serde::Serialize;
use tokio::time::Instant;

use super::ledger::{Findings, Ledger};
use super::telemetry::Telemetry;
use crate::quantity::micros;

/// The age at which a cut is closed: several are, and one is under way at most moments.
const INTERVAL: Duration = Duration::from_secs(1);
/// Its size: more than the age lets come.
const SIZE_BYTES: u64 = 16 << 20;
/// As many as one delivery stream takes in a cut.
const DEVICES_MAX: usize = 5_000;
/// Bytes of a file's name at most, and what stands before a device's in its folder.
const NAME_BYTES_MAX: usize = 255;
const DEVICE: &str = "device=";
/// Nothing is left to deliver after this, or something is wrong.
const PATIENCE: Duration = Duration::from_secs(60);

/// The delivery stream at work.
#[derive(Debug)]
pub(super) struct Delivering {
    client: Client,
    name: DeliveryName,
    directory: PathBuf,
}

/// What is on disk at some moment.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(super) struct OnDisk {
    /// Cuts with a manifest.
    pub(super) cuts: u64,
    /// Objects that these name.
    pub(super) objects: u64,
    /// Further objects, of a cut that is under way.
    pub(super) unnamed: u64,
}

/// What was delivered, once nothing more came.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Delivered {
    pub(super) directory: PathBuf,
    pub(super) cuts: u64,
    pub(super) objects: u64,
    /// Rows in them.
    pub(super) rows: u64,
    /// Their sizes together.
    pub(super) bytes: u64,
    /// Records that went to the error prefix.
    pub(super) failed: u64,
    /// How long the flush took, asked when everything was acknowledged and the incidents were over.
    pub(super) flush_us: u64,
    /// Age of the oldest reading that was not in a committed cut after it.
    pub(super) freshness_us: u64,
    /// How many there were of them.
    pub(super) backlog_records: u64,
    /// What the rows are, against what went in.
    pub(super) findings: Findings,
    /// What does not fit together, if anything does not.
    pub(super) fault: Option<String>,
}

impl Delivering {
    /// Creates it, into a directory that need not be there.
    pub(super) async fn start(
        client: &Client,
        stream: &StreamName,
        into: &Path,
        telemetry: &Telemetry,
    ) -> Result<Self> {
        let name: DeliveryName = "telemetry-lake".parse().context("BUG: a name of our own")?;
        check_devices(telemetry)?;
        let directory = std::path::absolute(into).context("finding out where this is")?;
        let path = directory
            .to_str()
            .context("a directory that is not UTF-8")?;
        client
            .create_delivery(&name, settings(stream, path))
            .await?;
        Ok(Self {
            client: client.clone(),
            name,
            directory,
        })
    }

    /// What there is on disk now.
    pub(super) async fn on_disk(&self) -> Result<OnDisk> {
        let (directory, prefix) = (self.directory.clone(), self.manifest_prefix());
        let looking = move || {
            let manifests = Manifests::read(&directory, &prefix)?;
            let named: BTreeSet<_> = manifests
                .objects("data")
                .map(|object| &*object.key)
                .collect();
            let mut there = Vec::new();
            find(&directory, &mut there)?;
            let key = |path: &PathBuf| {
                let inside = path.strip_prefix(&directory).ok()?;
                Some(named.contains(inside.to_str()?))
            };
            let unnamed = there.iter().filter(|path| key(path) != Some(true)).count();
            anyhow::Ok(OnDisk {
                cuts: manifests.cuts().len() as u64,
                objects: named.len() as u64,
                unnamed: unnamed as u64,
            })
        };
        let looked = tokio::task::spawn_blocking(looking).await;
        looked.context("looking at the objects")?
    }

    /// Now that everything is acknowledged: delivers what is left, and compares.
    pub(super) async fn finish(self, telemetry: &Arc<Telemetry>) -> Result<Delivered> {
        let asked = Instant::now();
        let described = self.client.flush_delivery(&self.name, PATIENCE).await;
        let described = described.context("delivering what was left")?;
        let flushed = asked.elapsed();
        let (directory, prefix) = (self.directory.clone(), self.manifest_prefix());
        let telemetry = Arc::clone(telemetry);
        let comparing = move || compare(directory, &prefix, telemetry);
        let compared = tokio::task::spawn_blocking(comparing).await;
        let mut delivered = compared.context("comparing what was delivered")?;
        delivered.flush_us = micros(flushed);
        delivered.freshness_us = micros(described.freshness);
        delivered.backlog_records = described.backlog.records;
        if delivered.fault.is_none() && described.cuts != delivered.cuts {
            let (says, there) = (described.cuts, delivered.cuts);
            delivered.fault = Some(format!("the broker says {says} cuts, there are {there}"));
        }
        Ok(delivered)
    }

    fn manifest_prefix(&self) -> String {
        format!("{}/", self.name)
    }
}

/// Parquet as it is by default (zstd, columns inferred), a folder per device and hour of arrival.
fn settings(stream: &StreamName, path: &str) -> DeliverySettings {
    let key = ("device".to_owned(), ".device".to_owned());
    DeliverySettings {
        buffering: Some(BufferingHints {
            size_bytes: Some(SIZE_BYTES),
            interval_ms: u64::try_from(INTERVAL.as_millis()).ok(),
        }),
        format: Some(Format::Parquet(ParquetFormat::default())),
        keys: Some(ObjectKeys {
            prefix: Some(format!(
                "{DEVICE}!{{partitionKeyFromQuery:device}}/hour=!{{timestamp:yyyy-MM-dd-HH}}/"
            )),
            error_prefix: Some("errors/!{firehose:error-output-type}/".to_owned()),
            ..ObjectKeys::default()
        }),
        partitioning: Some(Partitioning {
            keys: [key].into(),
            partitions_max: u32::try_from(DEVICES_MAX).ok(),
        }),
        ..into(from_stream(stream), directory(path))
    }
}

/// Each device is a folder, so there are bounds on names and on how many there are.
fn check_devices(telemetry: &Telemetry) -> Result<()> {
    let devices = &telemetry.devices;
    ensure!(
        devices.len() <= DEVICES_MAX,
        "{} devices: a cut has {DEVICES_MAX} partitions at most",
        devices.len()
    );
    // As keys have them: `/`, `\`, `%` and control characters become three characters each.
    let escaped = |name: &str| -> usize {
        let odd = |c: char| c.is_control() || matches!(c, '/' | '\\' | '%');
        name.chars()
            .map(|c| {
                if odd(c) {
                    3 * c.len_utf8()
                } else {
                    c.len_utf8()
                }
            })
            .sum()
    };
    let long = |name: &str| DEVICE.len() + escaped(name) > NAME_BYTES_MAX;
    match devices.iter().find(|device| long(&device.name)) {
        Some(device) => anyhow::bail!("{}: the name is too long for a folder", device.name),
        None => Ok(()),
    }
}

/// Objects below a folder; what the sink keeps beside them is left out.
fn find(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        let named = |name: &str| path.file_name().is_some_and(|last| last == name);
        if [".flumen-tmp", "_manifest", "_probe"]
            .into_iter()
            .any(named)
        {
            continue;
        }
        if path.is_dir() {
            find(&path, found)?;
        } else {
            found.push(path);
        }
    }
    Ok(())
}

/// Reads every object that a manifest names, and enters its rows.
fn compare(directory: PathBuf, prefix: &str, telemetry: Arc<Telemetry>) -> Delivered {
    let mut ledger = Ledger::new(telemetry);
    let mut delivered = Delivered {
        cuts: 0,
        objects: 0,
        rows: 0,
        bytes: 0,
        failed: 0,
        flush_us: 0,
        freshness_us: 0,
        backlog_records: 0,
        findings: Findings::default(),
        fault: None,
        directory,
    };
    if let Err(error) = enter_all(&mut delivered, prefix, &mut ledger) {
        delivered.fault = Some(error.to_string());
    }
    delivered.findings = ledger.findings();
    delivered
}

fn enter_all(
    delivered: &mut Delivered,
    prefix: &str,
    ledger: &mut Ledger,
) -> Result<(), ReadBackError> {
    let manifests = Manifests::read(&delivered.directory, prefix)?;
    delivered.cuts = manifests.cuts().len() as u64;
    for cut in manifests.cuts() {
        delivered.failed += cut.failed + cut.dropped + cut.expired;
    }
    for object in manifests.objects("data") {
        delivered.objects += 1;
        delivered.bytes += object.bytes;
        delivered.rows += enter(&manifests, object, ledger)?;
    }
    Ok(())
}

fn enter(
    manifests: &Manifests,
    object: &ManifestObject,
    ledger: &mut Ledger,
) -> Result<u64, ReadBackError> {
    let partition = object.partition.get("device");
    manifests.rows(object, &mut |row| {
        ledger.take_row(&row, partition.map_or("", |device| device));
    })
}

#[cfg(test)]
mod tests {
    use super::super::telemetry::of_text;
    use super::*;

    /// A directory with one cut of one object that has these rows.
    fn lake(rows: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let object = rows.join("\n");
        std::fs::write(dir.path().join("object"), &object).unwrap();
        let manifest = serde_json::json!({
            "format": "flumen-manifest/1", "delivery": "d", "incarnation": "i", "cut": 0,
            "settings_version": 1, "stream": "s", "ranges": [], "records": rows.len(), "bytes": 1,
            "rows": rows.len(), "dropped": 0, "failed": 0, "expired": 0,
            "objects": [{
                "kind": "data", "key": "object", "records": rows.len(), "bytes": object.len(),
                "encoding": "ndjson", "compression": "none", "oldest_arrival": "",
                "partition": { "device": "a" },
            }],
        });
        std::fs::create_dir_all(dir.path().join("d/_manifest")).unwrap();
        let name = "d/_manifest/i-00000000000000000000.json";
        std::fs::write(dir.path().join(name), manifest.to_string()).unwrap();
        dir
    }

    #[test]
    fn what_was_delivered_is_compared_with_what_went_in() {
        let telemetry = Arc::new(of_text(&[("a", "timestamp,value\nt,1\nt,2\n")]));
        let compare =
            |dir: &tempfile::TempDir| compare(dir.path().to_owned(), "d/", Arc::clone(&telemetry));
        let [one, two] = [1, 2].map(|value| {
            let row = value - 1;
            format!(r#"{{"device":"a","row":{row},"timestamp":"t","value":{value}.0}}"#)
        });
        let whole = compare(&lake(&[&one, &two]));
        assert_eq!((whole.cuts, whole.objects, whole.rows), (1, 1, 2));
        assert!(whole.findings.clean() && whole.fault.is_none(), "{whole:?}");

        let lost = compare(&lake(&[&one]));
        assert_eq!(lost.findings.missing, 1);
        let twice = compare(&lake(&[&one, &two, &two]));
        assert_eq!(twice.findings.repeated, 1);
        let changed = compare(&lake(&[&one, &two.replace("2.0", "2.5")]));
        assert_eq!(changed.findings.different, 1);
        let strange = compare(&lake(&[&one, &two.replace("\"row\":1", "\"row\":2")]));
        assert_eq!(strange.findings.strange, 1);

        let dir = lake(&[&one, &two]);
        std::fs::write(dir.path().join("object"), &one).unwrap();
        let damaged = compare(&dir);
        let fault = damaged.fault.unwrap();
        assert!(fault.starts_with("object has "), "{fault}");
        assert_eq!(damaged.findings.missing, 2);
    }

    #[test]
    fn devices_that_make_no_folder_are_refused_before_anything_starts() {
        let one = |name: &str| of_text(&[(name, "timestamp,value\nt,1\n")]);
        check_devices(&one(&"a".repeat(248))).unwrap();
        for name in ["a".repeat(249), "/".repeat(83)] {
            let refused = check_devices(&one(&name)).unwrap_err().to_string();
            assert!(refused.ends_with("too long for a folder"), "{refused}");
        }
    }
}
