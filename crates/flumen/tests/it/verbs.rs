//! Every verb of the command tree: one success and one refusal each. A verb without a case fails.

use std::path::Path;

use serde_json::Value;

use crate::cli::{Ran, run};
use crate::delivery_verbs as delivery;
use crate::process::BrokerProcess;

/// Nobody listens there: port 1 is for nobody's broker.
pub(crate) const NOBODY: &str = "--endpoint http://127.0.0.1:1";

/// A broker and a directory for the cases.
pub(crate) struct Stage {
    dir: tempfile::TempDir,
    broker: BrokerProcess,
}

impl Stage {
    fn set() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let broker = BrokerProcess::start(&dir.path().join("data"));
        let stage = Self { dir, broker };
        stage.flumen("stream create there --shards 2", b"").good();
        stage.flumen("produce there", b"one\ntwo\nthree\n").good();
        stage
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn flumen(&self, words: &str, input: &[u8]) -> Ran {
        let at = format!("--endpoint {}", self.broker.endpoint);
        run(self.path(), &format!("{at} {words}"), input)
    }

    pub(crate) fn json(&self, words: &str) -> Vec<Value> {
        let out = self.flumen(&format!("--output json {words}"), b"").good();
        out.lines()
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .collect()
    }
}

struct Case {
    verb: &'static str,
    good: fn(&Stage),
    refused: fn(&Stage),
}

#[track_caller]
pub(crate) fn has_keys(value: &Value, keys: &[&str]) {
    for key in keys {
        assert!(value.get(key).is_some(), "{key} is missing in {value}");
    }
}

const CASES: &[Case] = &[
    Case {
        verb: "serve",
        good: |stage| {
            // It ends by itself when its input does: drained, so 0.
            let words = "serve --listen-grpc 127.0.0.1:0 --listen-console 127.0.0.1:0 --data-dir other --until-stdin-closes";
            let out = run(stage.path(), words, b"").good();
            let lines: Vec<_> = out.lines().collect();
            let starts = |n: usize, text| {
                lines
                    .get(n)
                    .is_some_and(|line: &&str| line.starts_with(text))
            };
            assert!(
                starts(0, "grpc 127.0.0.1:") && starts(1, "console 127.0.0.1:"),
                "{out}"
            );
        },
        refused: |stage| {
            run(stage.path(), "serve --listen-grpc 8.8.8.8:1", b"").refused(1, "neither TLS nor");
        },
    },
    Case {
        verb: "demo",
        good: |stage| {
            let out = run(stage.path(), "--output json demo --keep kept", b"").good();
            let summary: Value = serde_json::from_str(out.trim()).expect("JSON");
            assert_eq!(summary["held"], true);
            assert_eq!(summary["live"]["present"], 152_965);
            assert_eq!(summary["read_again"]["present"], 152_965);
            let busy = summary["kill"]["batches_in_flight"]
                .as_array()
                .expect("counts");
            assert!(
                busy.len() >= 2 && busy.iter().all(|n| n.as_u64() > Some(0)),
                "{summary}"
            );
            assert!(stage.path().join("kept/data").exists());
            let delivered = &summary["delivered"];
            assert_eq!(delivered["rows"], 152_965);
            assert_eq!(delivered["findings"]["present"], 152_965);
            assert!(delivered["cuts"].as_u64() > Some(1), "{delivered}");
            assert!(delivered["objects"].as_u64() >= Some(31), "{delivered}");
            let hours = std::fs::read_dir(stage.path().join("kept/objects"));
            let devices = hours
                .expect("objects")
                .flatten()
                .map(|entry| entry.file_name());
            let devices = devices.filter(|name| name.to_string_lossy().starts_with("device="));
            assert_eq!(devices.count(), 31);
        },
        refused: |stage| {
            std::fs::write(stage.path().join("no.csv"), "a,b,c\n1,2,3\n").expect("a file");
            run(stage.path(), "demo --data no.csv", b"")
                .refused(1, "no.csv: line 1: not telemetry");
        },
    },
    Case {
        verb: "stream create",
        good: |stage| {
            let made =
                stage.json("stream create made --shards 3 --durability memory --retention 24h");
            assert_eq!(made[0]["shards"], 3);
            assert_eq!(made[0]["durability"], "memory");
            assert_eq!(made[0]["retention_us"], 86_400_000_000_u64);
            let words = "stream create scaled --auto-scale 1..8 --scale-bytes-per-s 1MiB --scale-cool-down 1m";
            let scaled = &stage.json(words)[0]["auto_scale"];
            assert_eq!(
                (&scaled["shards_max"], &scaled["shard_bytes_per_s"]),
                (&8.into(), &(1 << 20).into())
            );
            assert_eq!(scaled["cool_down_us"], 60_000_000);
        },
        refused: |stage| {
            stage
                .flumen("stream create there", b"")
                .refused(1, "exists already");
            stage
                .flumen("stream create a/b", b"")
                .refused(2, "a name is made of");
            stage
                .flumen("stream create few --retention 5m", b"")
                .refused(1, "retention");
            stage
                .flumen("stream create few --auto-scale 1..4", b"")
                .refused(1, "scale-bytes-per-s or scale-records-per-s");
            stage
                .flumen("stream create few --auto-scale 4", b"")
                .refused(2, "as in 1..16");
        },
    },
    Case {
        verb: "stream list",
        good: |stage| {
            let streams = stage.json("stream list");
            assert!(
                streams.iter().any(|stream| stream["stream"] == "there"),
                "{streams:?}"
            );
            assert!(stage.flumen("stream list", b"").good().contains("there"));
        },
        refused: |stage| {
            let words = format!("{NOBODY} stream list");
            run(stage.path(), &words, b"").refused(1, "start one with `flumen serve`");
        },
    },
    Case {
        verb: "stream describe",
        good: |stage| {
            let stream = &stage.json("stream describe there")[0];
            has_keys(
                stream,
                &["stream", "shards", "durability", "retention_us", "version"],
            );
            has_keys(
                &stream["shard_map"][1],
                &["shard", "open", "trim_horizon", "durable_end"],
            );
            assert_eq!(stream["records"], 3);
            assert!(
                stage
                    .flumen("stream describe there", b"")
                    .good()
                    .contains("SHARD")
            );
        },
        refused: |stage| {
            stage
                .flumen("stream describe missing", b"")
                .refused(1, "flumen stream create missing");
        },
    },
    Case {
        verb: "stream update",
        good: |stage| {
            let stream =
                &stage.json("stream update there --retention 2d --retention-bytes 1GiB")[0];
            assert_eq!(stream["retention_us"], 172_800_000_000_u64);
            assert_eq!(stream["retention_bytes"], 1 << 30);
            let scaled =
                &stage.json("stream update scaled --scale-split-above 50")[0]["auto_scale"];
            assert_eq!(
                (&scaled["split_above_percent"], &scaled["shards_max"]),
                (&50.into(), &8.into())
            );
            let text = stage.flumen("stream describe scaled", b"").good();
            assert!(
                text.contains("auto-scale 1..8 shards of 1.0 MiB/s: split above 50 %"),
                "{text}"
            );
            assert_eq!(
                stage.json("stream update there --retention-bytes none")[0]["retention_bytes"],
                Value::Null
            );
        },
        refused: |stage| {
            let off = &stage.json("stream update scaled --auto-scale off")[0];
            assert_eq!(off["auto_scale"], Value::Null);
            stage
                .flumen(
                    "stream update there --auto-scale 5..4 --scale-records-per-s 9",
                    b"",
                )
                .refused(1, "at least is 5");
            stage
                .flumen("stream update there", b"")
                .refused(2, "nothing to change");
            stage
                .flumen("stream update missing --retention 2d", b"")
                .refused(1, "does not exist");
        },
    },
    Case {
        verb: "stream delete",
        good: |stage| {
            stage.flumen("stream create short", b"").good();
            assert_eq!(
                stage.flumen("stream delete short", b"").good(),
                "deleted short\n"
            );
            stage
                .flumen("stream describe short", b"")
                .refused(1, "does not exist");
        },
        refused: |stage| {
            stage
                .flumen("stream delete missing", b"")
                .refused(1, "does not exist")
        },
    },
    Case {
        verb: "stream split",
        good: |stage| {
            stage.flumen("stream create cut", b"").good();
            let out = stage.flumen(
                "stream split cut 0 --at 0x80000000000000000000000000000000",
                b"",
            );
            assert_eq!(out.good(), "split shard 0 of cut into 1 and 2\n");
            let split = &stage.json("stream split cut 1 --at 5")[0];
            assert_eq!(
                (&split["shards"], &split["closed_shards"]),
                (&3.into(), &2.into())
            );
            let child = &split["shard_map"][3];
            assert_eq!(
                (&child["parents"][0], &child["open"]),
                (&1.into(), &true.into())
            );
            assert_eq!(child["hash_key_end"], format!("{:032x}", 4));
            let text = stage.flumen("stream describe cut", b"").good();
            assert!(text.contains("3 shards (2 more closed)"), "{text}");
            assert!(
                text.contains("PARENTS") && text.contains("closed"),
                "{text}"
            );
        },
        refused: |stage| {
            stage
                .flumen("stream split cut 0", b"")
                .refused(1, "shard 0 is closed");
            stage
                .flumen("stream split cut 77", b"")
                .refused(1, "no shard 77");
            stage
                .flumen("stream split cut 2 --at 9", b"")
                .refused(1, "cannot be split at hash key 9");
            stage
                .flumen("stream split cut 2 --at +9", b"")
                .refused(2, "not a hash key");
            stage
                .flumen("stream split missing 0", b"")
                .refused(1, "does not exist");
        },
    },
    Case {
        verb: "stream merge",
        good: |stage| {
            let out = stage.flumen("stream merge cut 4 2", b"").good();
            assert_eq!(out, "merged shards 4 and 2 of cut into 5\n");
            assert_eq!(stage.json("stream merge cut 3 5")[0]["shards"], 1);
        },
        refused: |stage| {
            stage
                .flumen("stream merge cut 0 6", b"")
                .refused(1, "shard 0 is closed");
            stage.flumen("stream create four --shards 4", b"").good();
            stage
                .flumen("stream merge four 0 2", b"")
                .refused(1, "not neighbours");
            stage.flumen("stream merge four 0", b"").refused(2, "<B>");
        },
    },
    Case {
        verb: "stream scale",
        good: |stage| {
            assert_eq!(stage.json("stream scale cut 7")[0]["shards"], 7);
            let out = stage.flumen("stream scale cut 2", b"").good();
            assert_eq!(out, "scaled cut: 2 open shards\n");
        },
        refused: |stage| {
            stage
                .flumen("stream scale cut 0", b"")
                .refused(1, "shards is 0, allowed is 1 to 10000");
            stage
                .flumen("stream scale cut many", b"")
                .refused(2, "many");
            stage
                .flumen("stream scale missing 2", b"")
                .refused(1, "does not exist");
        },
    },
    Case {
        verb: "produce",
        good: |stage| {
            stage.flumen("stream create fed", b"").good();
            assert!(
                stage
                    .flumen("produce fed", b"a\nb\n")
                    .good()
                    .starts_with("2 records")
            );
        },
        refused: |stage| {
            stage
                .flumen("produce missing", b"a\n")
                .refused(1, "does not exist");
            stage
                .flumen("produce there --key id", b"a\n")
                .refused(2, "csv or ndjson");
            std::fs::write(stage.path().join("not.csv"), b"\x7fELF\x00\x01\n").expect("a file");
            let bad = stage.flumen("--quiet produce there not.csv --format csv", b"");
            assert!(
                bad.code == Some(1) && bad.err.contains("not.csv: line 1: not CSV"),
                "{bad:?}"
            );
            let large = vec![b'x'; 2 << 20];
            let large = stage.flumen("produce there", &large);
            assert!(
                large.code == Some(1) && large.err.contains("larger than"),
                "{large:?}"
            );
        },
    },
    Case {
        verb: "consume",
        good: |stage| {
            let out = stage.flumen("consume there", b"").good();
            let mut lines: Vec<_> = out.lines().collect();
            lines.sort_unstable();
            assert_eq!(lines, ["one", "three", "two"]);
        },
        refused: |stage| {
            stage
                .flumen("consume missing", b"")
                .refused(1, "does not exist");
            stage
                .flumen("consume there --from at:0", b"")
                .refused(2, "say which with --shard");
            stage
                .flumen("consume there --shard 7", b"")
                .refused(1, "shard 7");
            stage
                .flumen("consume there --shard 0 --from at:99", b"")
                .refused(1, "99");
            stage
                .flumen("consume there --format %q", b"")
                .refused(2, "no %q");
            stage
                .flumen("consume there --from yesterday", b"")
                .refused(2, "trim-horizon");
        },
    },
    Case {
        verb: "tail",
        // round_trip.rs follows a stream; here: it ends after as many as it was asked for.
        good: |stage| assert_eq!(stage.flumen("tail there --max 0", b"").good(), ""),
        refused: |stage| {
            stage
                .flumen("tail missing", b"")
                .refused(1, "does not exist")
        },
    },
    Case {
        verb: "group list",
        good: |stage| {
            // consume --group makes one.
            let out = stage.flumen("consume there --group g", b"").good();
            assert_eq!(out.lines().count(), 3);
            let words = "consume there --group half --member m --max 1";
            assert_eq!(stage.flumen(words, b"").good().lines().count(), 1);
            let groups = stage.json("group list");
            let lags: Vec<_> = groups
                .iter()
                .map(|group| (&group["group"], &group["lag_records"]))
                .collect();
            assert_eq!(
                lags,
                [(&"g".into(), &0.into()), (&"half".into(), &2.into())]
            );
            has_keys(
                &groups[0],
                &[
                    "stream",
                    "members",
                    "shards",
                    "lag_bytes",
                    "lag_age_us",
                    "expired_records",
                    "expired_unknown",
                ],
            );
            let text = stage.flumen("group list --stream there", b"").good();
            assert!(
                text.starts_with("STREAM") && text.contains("half"),
                "{text}"
            );
            assert!(stage.json("group list --stream fed").is_empty());
        },
        refused: |stage| {
            stage
                .flumen("group list --stream missing", b"")
                .refused(1, "does not exist");
            let words = format!("{NOBODY} group list");
            run(stage.path(), &words, b"").refused(1, "start one with `flumen serve`");
            for (words, says) in [
                ("--from at:1", "flumen group reset"),
                ("--shard 0", "cannot be used with"),
            ] {
                let words = format!("consume there --group g {words}");
                stage.flumen(&words, b"").refused(2, says);
            }
            let alone = stage.flumen("consume there --member m", b"");
            alone.refused(2, "--group");
            let hasty = stage.flumen("consume there --group g --session-timeout 5ms", b"");
            hasty.refused(1, "session timeout");
        },
    },
    Case {
        verb: "group describe",
        good: |stage| {
            let group = &stage.json("group describe there g")[0];
            has_keys(
                group,
                &["stream", "group", "lag_records", "forced_hand_overs"],
            );
            assert_eq!(group["member_list"], Value::Array(Vec::new()));
            let shards = group["shard_map"].as_array().expect("shards");
            assert_eq!(shards.len(), 2);
            has_keys(
                &shards[0],
                &[
                    "shard",
                    "state",
                    "member",
                    "generation",
                    "sequence_number",
                    "checkpoint_time",
                    "lag_records",
                    "lag_bytes",
                    "lag_age_us",
                    "expired_records",
                    "beyond_end",
                ],
            );
            let text = stage.flumen("group describe there g", b"").good();
            let first = text.lines().next().unwrap_or_default();
            assert_eq!(first, "there/g: 0 members, 2 shards, nothing behind");
            assert!(
                text.contains("CHECKPOINT") && text.contains("free"),
                "{text}"
            );
        },
        refused: |stage| {
            stage
                .flumen("group describe there missing", b"")
                .refused(1, "flumen group list");
            stage
                .flumen("group describe there a/b", b"")
                .refused(2, "a name is made of");
        },
    },
    Case {
        verb: "group reset",
        good: |stage| {
            let dry = stage.json("group reset there g --to trim-horizon --dry-run");
            assert_eq!((dry.len(), &dry[0]["after"]), (2, &0.into()), "{dry:?}");
            assert_eq!(dry[0]["dry_run"], true);
            let lag = || stage.json("group describe there g")[0]["lag_records"].clone();
            assert_eq!(lag(), 0);
            let text = stage.flumen("group reset there g --to -1h", b"").good();
            assert!(text.starts_with("reset g of there: 2 shards"), "{text}");
            assert_eq!(lag(), 3);
            let one = stage.json("group reset there g --to at:0 --shard 1");
            assert_eq!((one.len(), &one[0]["shard"]), (1, &1.into()), "{one:?}");
            stage.flumen("group reset there g --to latest", b"").good();
            assert_eq!(lag(), 0);
        },
        refused: |stage| {
            let reset = |words: &str| stage.flumen(&format!("group reset there g {words}"), b"");
            reset("--to at:1").refused(2, "--shard");
            reset("--to at:1 --shard 0 --shard 1").refused(2, "--shard");
            reset("--to after:1 --shard 0").refused(2, "at:SEQ");
            reset("--to yesterday").refused(2, "trim-horizon");
            reset("").refused(2, "--to");
            reset("--to at:99 --shard 0").refused(1, "99");
            reset("--to latest --shard 7").refused(1, "shard 7");
            stage
                .flumen("group reset missing g --to latest", b"")
                .refused(1, "does not exist");
        },
    },
    Case {
        verb: "group delete",
        good: |stage| {
            assert_eq!(
                stage.flumen("group delete there g", b"").good(),
                "deleted g of there\n"
            );
            let deleted = &stage.json("group delete there half --force")[0];
            assert_eq!(
                (&deleted["group"], &deleted["deleted"]),
                (&"half".into(), &true.into())
            );
            assert!(stage.json("group list").is_empty());
        },
        refused: |stage| {
            stage
                .flumen("group delete there g", b"")
                .refused(1, "flumen group list");
        },
    },
    Case {
        verb: "delivery create",
        good: delivery::create::good,
        refused: delivery::create::refused,
    },
    Case {
        verb: "delivery list",
        good: delivery::list::good,
        refused: delivery::list::refused,
    },
    Case {
        verb: "delivery describe",
        good: delivery::describe::good,
        refused: delivery::describe::refused,
    },
    Case {
        verb: "delivery update",
        good: delivery::update::good,
        refused: delivery::update::refused,
    },
    Case {
        verb: "delivery pause",
        good: delivery::pause::good,
        refused: delivery::pause::refused,
    },
    Case {
        verb: "delivery resume",
        good: delivery::resume::good,
        refused: delivery::resume::refused,
    },
    Case {
        verb: "delivery flush",
        good: delivery::flush::good,
        refused: delivery::flush::refused,
    },
    Case {
        verb: "delivery delete",
        good: delivery::delete::good,
        refused: delivery::delete::refused,
    },
    Case {
        verb: "bench produce",
        good: |stage| {
            let words = "bench produce --records 600 --batch 3 --sessions 2 --in-flight 4 --connections 2 --record-size 100 --shards 2 --verify";
            let report = &stage.json(words)[0];
            has_keys(report, REPORT);
            assert_eq!(
                (&report["mode"], &report["records"]),
                (&"produce".into(), &600.into())
            );
            assert_eq!(
                (&report["bytes"], &report["verified_records"]),
                (&60_000.into(), &600.into())
            );
            has_keys(&report["latency_us"], &["p50", "p90", "p99", "p999", "max"]);
            // Open loop, as text, on a stream that stays.
            let words = "bench produce --stream benched --rate 2000 --duration 500ms --verify";
            assert!(stage.flumen(words, b"").good().contains("open loop"));
            assert_eq!(stage.json("stream describe benched")[0]["records"], 1_000);
        },
        refused: |stage| {
            stage
                .flumen("bench produce --batch 65536", b"")
                .refused(2, "larger than 12 MiB");
            stage
                .flumen("bench produce --rate fast", b"")
                .refused(2, "or max");
        },
    },
    Case {
        verb: "bench consume",
        good: |stage| {
            let report = &stage.json("bench consume --stream there --connections 2")[0];
            has_keys(report, REPORT);
            assert_eq!(
                (&report["records"], &report["bytes"]),
                (&3.into(), &11.into())
            );
        },
        refused: |stage| {
            stage
                .flumen("bench consume --stream missing", b"")
                .refused(1, "does not exist");
        },
    },
    Case {
        verb: "bench e2e",
        good: |stage| {
            let words =
                "bench e2e --rate 2000 --duration 500ms --consumers 2 --record-size 64 --verify";
            let report = &stage.json(words)[0];
            has_keys(report, REPORT);
            has_keys(
                &report["end_to_end_us"],
                &["p50", "p90", "p99", "p999", "max"],
            );
            assert_eq!(
                (&report["records"], &report["consumers"]),
                (&1_000.into(), &2.into())
            );
            assert_eq!(report["bytes_out"], 128_000);
        },
        refused: |stage| {
            let words = format!("{NOBODY} bench e2e");
            run(stage.path(), &words, b"").refused(1, "start one with `flumen serve`");
        },
    },
    Case {
        verb: "doctor",
        good: |stage| {
            // The demo's directory was filled, and its broker has ended by now.
            let out = run(stage.path(), "doctor --data-dir kept/data", b"").good();
            assert!(out.contains("no damage"), "{out}");
            let words = "--output json doctor --data-dir kept/data";
            let out = run(stage.path(), words, b"").good();
            let found: Value = serde_json::from_str(out.trim()).expect("JSON");
            assert_eq!(found["findings"], 0);
            assert_eq!(found["records"], 152_965);
            assert!(found["rounds"].as_u64() > Some(30), "{found}");
        },
        refused: |stage| {
            run(stage.path(), "doctor --data-dir data", b"").refused(1, "in use");
            run(stage.path(), "doctor --data-dir missing", b"").refused(1, "missing");
        },
    },
    Case {
        verb: "doctor repair",
        good: |stage| {
            let words = "doctor repair --dry-run --data-dir kept/data";
            let out = run(stage.path(), words, b"").good();
            assert!(out.contains("nothing to repair"), "{out}");
        },
        refused: |stage| {
            run(stage.path(), "doctor repair --data-dir data", b"").refused(1, "in use");
        },
    },
    Case {
        verb: "clock confirm",
        good: |stage| {
            let out = stage.flumen("clock confirm", b"").good();
            assert_eq!(out, "the wall clock is believed\n");
            assert_eq!(stage.json("clock confirm")[0]["jump_us"], 0);
        },
        refused: |stage| {
            let words = format!("{NOBODY} clock confirm");
            run(stage.path(), &words, b"").refused(1, "start one with `flumen serve`");
        },
    },
    Case {
        verb: "config check",
        good: |stage| {
            let out = run(
                stage.path(),
                "config check --set broker.round_bytes_max=1MiB",
                b"",
            )
            .good();
            assert!(out.contains("1 differ"), "{out}");
        },
        refused: |stage| {
            run(stage.path(), "config check --set dev=perhaps", b"").refused(1, "true or false");
        },
    },
    Case {
        verb: "config show",
        good: |stage| {
            let out = run(
                stage.path(),
                "--output json config show --data-dir here",
                b"",
            )
            .good();
            let shown: Vec<Value> = out
                .lines()
                .map(|line| serde_json::from_str(line).expect("JSON"))
                .collect();
            let dir = shown
                .iter()
                .find(|setting| setting["key"] == "data_dir")
                .expect("data_dir");
            assert_eq!(
                (&dir["value"], &dir["origin"]),
                (&"here".into(), &"--data-dir".into())
            );
        },
        refused: |stage| {
            run(stage.path(), "config show --config nowhere.toml", b"").refused(1, "nowhere.toml");
        },
    },
    Case {
        verb: "completions",
        good: |stage| {
            for shell in ["bash", "zsh", "fish"] {
                let script = run(stage.path(), &format!("completions {shell}"), b"").good();
                assert!(script.contains("flumen"), "{shell}");
            }
        },
        refused: |stage| run(stage.path(), "completions cmd.exe", b"").refused(2, "cmd.exe"),
    },
];

const REPORT: &[&str] = &[
    "mode",
    "stream",
    "shards",
    "durability",
    "record_bytes",
    "batch_records",
    "sessions",
    "in_flight",
    "connections",
    "rate_target_per_s",
    "records",
    "bytes",
    "errors",
    "seconds",
    "records_per_s",
    "bytes_per_s",
    "latency_us",
];

/// The commands that do something, as they are typed.
fn verbs(command: &clap::Command, prefix: &str, found: &mut Vec<String>) {
    let inner = command
        .get_subcommands()
        .filter(|inner| inner.get_name() != "help");
    for inner in inner {
        let name = format!("{prefix} {}", inner.get_name()).trim().to_owned();
        if inner.has_subcommands() {
            // One that does something by itself too.
            if !inner.is_subcommand_required_set() && !inner.is_arg_required_else_help_set() {
                found.push(name.clone());
            }
            verbs(inner, &name, found);
        } else {
            found.push(name);
        }
    }
}

#[test]
fn every_verb_has_a_case() {
    let mut found = Vec::new();
    verbs(&flumen::command_tree(), "", &mut found);
    let cases: Vec<_> = CASES.iter().map(|case| case.verb).collect();
    assert_eq!(found, cases);
}

#[test]
fn every_verb_succeeds_and_refuses() {
    let stage = Stage::set();
    for case in CASES {
        (case.good)(&stage);
        (case.refused)(&stage);
    }
}
