//! The verbs of delivery streams, for `verbs.rs`: one success and one refusal each, in its order.

use serde_json::Value;

use crate::cli::run;
use crate::verbs::{NOBODY, Stage, has_keys};

const KEYS: &[&str] = &[
    "name",
    "stream",
    "destination",
    "status",
    "version",
    "guarantee",
    "freshness_us",
    "freshness_ms",
    "backlog_records",
    "backlog_bytes",
    "expired_records",
    "cuts",
    "cuts_open",
];

fn described(stage: &Stage, name: &str) -> Value {
    stage.json(&format!("delivery describe {name}")).remove(0)
}

pub(crate) mod create {
    use super::*;

    pub(crate) fn good(stage: &Stage) {
        stage.flumen("stream create events --shards 2", b"").good();
        stage
            .flumen("produce events", b"{\"n\":1}\n{\"n\":2}\n{\"n\":3}\n")
            .good();
        // A relative directory is made absolute here, where the command was typed.
        let words = "delivery create kept --stream events --to objects --format ndjson \
                     --compression gzip --interval 15m";
        let kept = &stage.json(words)[0];
        has_keys(kept, KEYS);
        let objects = stage.path().join("objects");
        let destination = format!("file://{}", objects.display());
        assert_eq!(kept["destination"], destination);
        assert_eq!(kept["settings"]["destination"]["kind"], "directory");
        assert_eq!(kept["settings"]["buffering"]["interval_ms"], 900_000);
        let out = stage
            .flumen(
                "delivery create puts --direct --to memory:m --interval 0",
                b"",
            )
            .good();
        assert!(
            out.contains("flumen produce delivery.puts")
                && out.contains("delivery.puts → memory:m"),
            "{out}"
        );
        stage.flumen("produce delivery.puts", b"a\nb\n").good();
    }

    pub(crate) fn refused(stage: &Stage) {
        let create = |words: &str| stage.flumen(&format!("delivery create {words}"), b"");
        create("kept --stream events --to objects").refused(1, "flumen delivery update");
        create("new --stream missing --to objects").refused(1, "flumen stream create missing");
        create("new --stream events").refused(2, "--to s3://BUCKET");
        create("new --to objects").refused(2, "--direct");
        create("new --direct --to objects --compression zip")
            .refused(2, "zip is not supported; gzip, snappy, zstd are");
        create("new --direct --to objects --format orc").refused(2, "parquet is");
        create("new --direct --to objects --glue-table t").refused(2, "name columns with --column");
        create("new --direct --to objects --kms-key k").refused(2, "encryption of the bucket");
        create("new --direct --to gs://bucket").refused(2, "gs:// is not supported");
        create("new --direct --to objects --size 1B").refused(1, "buffering.size_bytes");
        create("a/b --direct --to objects").refused(2, "a name is made of");
        let stdin = stage.flumen("delivery create new --settings -", b"{}");
        stdin.refused(2, "missing field `source`");
        create("new --settings nowhere.json").refused(1, "nowhere.json");
        let words = format!("{NOBODY} delivery list");
        run(stage.path(), &words, b"").refused(1, "start one with `flumen serve`");
    }
}

pub(crate) mod list {
    use super::*;

    pub(crate) fn good(stage: &Stage) {
        let all = stage.json("delivery list");
        let names: Vec<_> = all.iter().map(|one| &one["name"]).collect();
        assert_eq!(names, ["kept", "puts"]);
        has_keys(&all[0], KEYS);
        let text = stage.flumen("delivery list", b"").good();
        assert!(
            text.starts_with("NAME") && text.contains("memory:m"),
            "{text}"
        );
    }

    pub(crate) fn refused(stage: &Stage) {
        stage.flumen("delivery list kept", b"").refused(2, "kept");
    }
}

pub(crate) mod describe {
    use super::*;

    pub(crate) fn good(stage: &Stage) {
        let kept = described(stage, "kept");
        has_keys(&kept, KEYS);
        has_keys(&kept, &["last_object", "last_error", "counts", "settings"]);
        assert_eq!(
            (&kept["backlog_records"], &kept["version"]),
            (&3.into(), &1.into())
        );
        assert!(kept["freshness_us"].as_u64() > Some(0), "{kept}");
        let text = stage.flumen("delivery describe kept", b"").good();
        assert!(
            text.starts_with("kept: ") && text.contains("3 records behind"),
            "{text}"
        );
        assert!(
            text.contains("objects, ndjson, gzip, cut at 5.0 MiB or 15m"),
            "{text}"
        );
        // What is shown as settings is taken as settings.
        let settings = kept["settings"].to_string();
        let copy = stage.flumen(
            "--output json delivery create copy --settings - --to memory:copy",
            settings.as_bytes(),
        );
        let copy: Value = serde_json::from_str(&copy.good()).expect("JSON");
        assert_eq!(copy["settings"]["format"], kept["settings"]["format"]);
        stage.flumen("delivery delete copy --drop", b"").good();
    }

    pub(crate) fn refused(stage: &Stage) {
        stage
            .flumen("delivery describe missing", b"")
            .refused(1, "flumen delivery list");
    }
}

pub(crate) mod update {
    use super::*;

    pub(crate) fn good(stage: &Stage) {
        let text = stage.flumen("delivery update kept --size 1MiB", b"").good();
        assert!(
            text.starts_with("updated kept: ") && text.contains("1.0 MiB or 15m"),
            "{text}"
        );
        let words = "delivery update kept --version 2 --compression none";
        let kept = &stage.json(words)[0];
        assert_eq!(
            (&kept["version"], &kept["settings"]["compression"]),
            (&3.into(), &"none".into())
        );
        assert_eq!(kept["settings"]["buffering"]["size_bytes"], 1 << 20);
    }

    pub(crate) fn refused(stage: &Stage) {
        let update = |words: &str| stage.flumen(&format!("delivery update {words}"), b"");
        update("kept").refused(2, "nothing to change");
        update("kept --version 1 --size 2MiB").refused(1, "at version 3, not 1");
        update("kept --partition a=.a").refused(1, "create another one");
        update("kept --to s3://b/path").refused(2, "--prefix");
        update("kept --region r").refused(2, "--to s3://BUCKET");
        update("missing --size 2MiB").refused(1, "flumen delivery list");
    }
}

pub(crate) mod pause {
    use super::*;

    pub(crate) fn good(stage: &Stage) {
        let text = stage.flumen("delivery pause kept", b"").good();
        assert!(text.starts_with("paused kept: "), "{text}");
        assert_eq!(described(stage, "kept")["paused"], true);
        stage
            .flumen("delivery flush kept", b"")
            .refused(1, "flumen delivery resume");
        stage
            .flumen("delivery delete kept", b"")
            .refused(1, "--drop or --force");
    }

    pub(crate) fn refused(stage: &Stage) {
        stage
            .flumen("delivery pause missing", b"")
            .refused(1, "flumen delivery list");
    }
}

pub(crate) mod resume {
    use super::*;

    pub(crate) fn good(stage: &Stage) {
        let resumed = &stage.json("delivery resume kept")[0];
        assert_eq!(resumed["paused"], false);
        let renewed = &stage.json("delivery resume kept --new-incarnation --wait 30s")[0];
        assert_eq!(renewed["paused"], false);
    }

    pub(crate) fn refused(stage: &Stage) {
        stage
            .flumen("delivery resume missing", b"")
            .refused(1, "flumen delivery list");
    }
}

pub(crate) mod flush {
    use super::*;

    pub(crate) fn good(stage: &Stage) {
        let text = stage.flumen("delivery flush kept", b"").good();
        assert!(text.starts_with("flushed kept: "), "{text}");
        let kept = described(stage, "kept");
        assert_eq!(
            (&kept["backlog_records"], &kept["freshness_us"]),
            (&0.into(), &0.into()),
            "{kept}"
        );
        assert!(kept["cuts"].as_u64() >= Some(1), "{kept}");
        has_keys(&kept["last_object"], &["key", "bytes", "records", "time"]);
        let key = kept["last_object"]["key"].as_str().expect("a key");
        let object = std::fs::read_to_string(stage.path().join("objects").join(key));
        let object = object.expect("the object");
        assert!(
            object.lines().all(|line| line.starts_with("{\"n\":")),
            "{object}"
        );
    }

    pub(crate) fn refused(stage: &Stage) {
        stage
            .flumen("delivery flush missing", b"")
            .refused(1, "flumen delivery list");
        // Nobody listens there.
        stage
            .flumen(
                "delivery create lost --stream events --to s3://bucket --s3-endpoint http://127.0.0.1:1",
                b"",
            )
            .good();
        stage
            .flumen("delivery flush lost --wait 300ms", b"")
            .refused(1, "flumen delivery describe");
    }
}

pub(crate) mod delete {
    use super::*;

    pub(crate) fn good(stage: &Stage) {
        stage
            .flumen("stream delete events", b"")
            .refused(1, "delete the delivery stream first");
        let text = stage.flumen("delivery delete kept", b"").good();
        assert_eq!(text, "deleted kept; its objects stay\n");
        let words = "--quiet delivery delete lost --wait 300ms --force";
        let text = stage.flumen(words, b"").good();
        assert_eq!(
            text,
            "deleted lost without delivering what was left; its objects stay\n"
        );
        let deleted = &stage.json("delivery delete puts --drop")[0];
        assert_eq!(
            (&deleted["deleted"], &deleted["dropped"]),
            (&true.into(), &true.into())
        );
        assert!(stage.json("delivery list").is_empty());
        stage.flumen("stream delete events", b"").good();
        assert!(stage.path().join("objects").is_dir());
    }

    pub(crate) fn refused(stage: &Stage) {
        stage
            .flumen("delivery delete kept", b"")
            .refused(1, "flumen delivery list");
    }
}
