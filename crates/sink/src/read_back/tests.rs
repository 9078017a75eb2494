//! What comes back, and what is found out, of directories as the sink writes them.

use std::io::Write as _;

use flumen_broker::DeliverySettings;
use serde_json::json;

use super::*;
use crate::encode::{Encoding, Schema};

/// A directory with cuts of these objects: key, encoding settings and rows.
struct Lake {
    dir: tempfile::TempDir,
    manifests: Vec<Value>,
}

const LIFE: &str = "0000000000abcd-0001";

impl Lake {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            manifests: Vec::new(),
        }
    }

    /// One more cut, of one object.
    fn cut(&mut self, key: &str, how: Value, rows: &[&str]) {
        let mut settings = json!({
            "source": { "kind": "direct" },
            "destination": { "kind": "memory", "name": "m" },
        });
        settings
            .as_object_mut()
            .unwrap()
            .extend(how.as_object().unwrap().clone());
        let settings: DeliverySettings = serde_json::from_value(settings).unwrap();
        let encoding = Encoding::compile(&settings).unwrap();
        let mut admission = encoding.admission(Schema::default());
        let admitted = rows
            .iter()
            .map(|row| Bytes::copy_from_slice(row.as_bytes()));
        let admitted: Vec<_> = admitted.map(|row| admission.admit(row).unwrap()).collect();
        let mut encoder = encoding.encoder(admission.schema(), Vec::new()).unwrap();
        admitted.iter().for_each(|row| encoder.row(row).unwrap());
        let (bytes, _) = encoder.finish().unwrap();
        self.write(key, &bytes);
        let cut = self.manifests.len();
        self.manifests.push(json!({
            "format": "flumen-manifest/1", "delivery": "d", "incarnation": LIFE, "cut": cut,
            "settings_version": 1, "stream": "s", "ranges": [{ "shard": 0, "from": 0, "to": 9 }],
            "records": rows.len(), "bytes": 1, "rows": rows.len(), "dropped": 0, "failed": 0,
            "expired": 0,
            "objects": [{
                "kind": "data", "key": key, "records": rows.len(), "bytes": bytes.len(),
                "crc32": format!("{:08x}", crc32fast::hash(&bytes)),
                "encoding": encoding.format_name(), "compression": encoding.compression_name(),
                "oldest_arrival": "2026-11-27T00:00:00.000000Z",
            }],
        }));
    }

    fn write(&self, key: &str, bytes: &[u8]) {
        let path = self.dir.path().join(key);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        File::create(path).unwrap().write_all(bytes).unwrap();
    }

    fn read(&self) -> Result<Manifests, ReadBackError> {
        for manifest in &self.manifests {
            let name = format!(
                "d/_manifest/{LIFE}-{:020}.json",
                manifest["cut"].as_u64().unwrap()
            );
            self.write(&name, &serde_json::to_vec(manifest).unwrap());
        }
        Manifests::read(self.dir.path(), "d/")
    }

    fn rows(&self) -> Result<Vec<Value>, ReadBackError> {
        let manifests = self.read()?;
        let mut rows = Vec::new();
        for object in manifests.objects("data") {
            manifests.rows(object, &mut |row| rows.push(Value::Object(row)))?;
        }
        Ok(rows)
    }

    fn refused(&self) -> String {
        self.rows().unwrap_err().to_string()
    }
}

#[test]
fn rows_come_back_from_every_format_that_has_them() {
    let rows = [
        r#"{"n":1,"text":"ü\n","at":0.1}"#,
        r#"{"n":-2,"more":[1,{"a":null}]}"#,
    ];
    let columns: Vec<Value> = ["n:bigint", "d:date", "t:timestamp", "b:boolean", "i:int"]
        .iter()
        .map(|column| column.split_once(':').unwrap())
        .map(|(name, kind)| json!({ "name": name, "type": kind }))
        .collect();
    let mut lake = Lake::new();
    lake.cut("p", json!({ "format": { "kind": "parquet" } }), &rows);
    for compression in ["none", "gzip", "zstd"] {
        let how = json!({ "format": { "kind": "ndjson" }, "compression": compression });
        lake.cut(&format!("l/{compression}"), how, &rows);
    }
    let given = r#"{"n":7,"d":"1969-12-31","t":"2014-07-01 00:30:00.25","b":false,"i":-1}"#;
    let how = json!({ "format": { "kind": "parquet", "columns": columns } });
    lake.cut("g", how, &[given]);

    let mut expected: Vec<Value> = std::iter::repeat_n(rows, 4)
        .flatten()
        .map(|row| serde_json::from_str(row).unwrap())
        .collect();
    // Columns have text for what is nested.
    expected[1]["more"] = json!("[1,{\"a\":null}]");
    expected.push(json!({
        "n": 7, "d": "1969-12-31", "t": "2014-07-01T00:30:00.25Z", "b": false, "i": -1,
    }));
    assert_eq!(lake.rows().unwrap(), expected);
}

#[test]
fn where_nothing_was_delivered_there_are_no_cuts() {
    assert!(Lake::new().read().unwrap().cuts().is_empty());
}

/// Each of these would be a record twice, lost or changed for whoever did not look.
#[test]
fn whatever_is_not_as_the_manifests_say_is_found() {
    let lines = json!({ "format": { "kind": "ndjson" } });
    let lake = || {
        let mut lake = Lake::new();
        lake.cut("a", lines.clone(), &["{\"n\":1}"]);
        lake.cut("b", lines.clone(), &["{\"n\":2}"]);
        lake
    };
    assert_eq!(lake().rows().unwrap().len(), 2);

    let mut gap = lake();
    gap.manifests.remove(0);
    assert_eq!(
        gap.refused(),
        format!("there is no manifest of cut 0 of {LIFE}, and there are later ones")
    );
    let mut twice = lake();
    twice.manifests[1]["objects"][0]["key"] = json!("a");
    assert_eq!(twice.refused(), "a is named twice");
    for key in ["../a", "/etc/passwd", "", "x/../../a"] {
        let mut outside = lake();
        outside.manifests[1]["objects"][0]["key"] = json!(key);
        assert_eq!(
            outside.refused(),
            format!("{key} is not the key of an object")
        );
    }
    let mut changed = lake();
    changed.write("a", b"{\"n\":3}\n");
    assert!(changed.refused().starts_with("a has 8 bytes and checksum "));
    changed.write("a", b"");
    assert!(
        changed
            .refused()
            .starts_with("a has 0 bytes and checksum ,")
    );
    std::fs::remove_file(changed.dir.path().join("a")).unwrap();
    assert!(changed.refused().starts_with("cannot read "));
    changed = lake();
    changed.manifests[0]["objects"][0]["records"] = json!(2);
    assert_eq!(changed.refused(), "a has 1 rows; its manifest says 2");
    changed = lake();
    changed.manifests[0]["objects"][0]["encoding"] = json!("parquet");
    assert!(changed.refused().starts_with("a cannot be read as rows: "));
    changed.manifests[0]["objects"][0]["encoding"] = json!("verbatim");
    assert!(
        changed
            .refused()
            .starts_with("a is verbatim, compressed with none")
    );
    changed = lake();
    changed.manifests[0]["format"] = json!("flumen-manifest/2");
    assert!(changed.refused().contains("flumen-manifest/2"));
    let stray = lake();
    stray.write("d/_manifest/note.txt", b"hello");
    assert!(stray.refused().contains("note.txt is not a manifest"));
}
