//! Parquet into a server that answers as AWS does, read by pyarrow over S3 and by DuckDB from files.

use std::fmt::Write as _;
use std::process::Command;

use serde_json::{Value, json};

use super::node::{Node, to};
use crate::servers::{ACCESS_KEY, BUCKET, Kind, SECRET_KEY, Server, python};

const RECORDS: u64 = 20_000;
const DEVICES: u64 = 5;

const READ: &str = r#"
import json, os, sys
import duckdb, pyarrow.compute as pc, pyarrow.dataset as ds, pyarrow.fs as fs, pyarrow.parquet as pq
address, access, secret, bucket, into = sys.argv[1:]
s3 = fs.S3FileSystem(endpoint_override=address, access_key=access, secret_key=secret,
    region="us-east-1", allow_bucket_creation=False)
found = s3.get_file_info(fs.FileSelector(f"{bucket}/flumen/lake/_manifest", recursive=True))
read = lambda path: s3.open_input_stream(path).read()
manifests = [json.loads(read(file.path)) for file in found if file.is_file]
objects = [entry for manifest in manifests for entry in manifest["objects"]]
paths = [f"{bucket}/{entry['key']}" for entry in objects]
codecs = set()
for number, path in enumerate(paths):
    metadata = pq.ParquetFile(s3.open_input_file(path)).metadata
    assert metadata.num_rows == objects[number]["records"], path
    for group in range(metadata.num_row_groups):
        for column in range(metadata.num_columns):
            codecs.add(metadata.row_group(group).column(column).compression)
    with open(os.path.join(into, f"{number}.parquet"), "wb") as file:
        file.write(read(path))
table = ds.dataset(paths, filesystem=s3, format="parquet").to_table()
devices = sorted(pc.unique(table["device"]).to_pylist())
by_pyarrow = [table.num_rows, pc.sum(table["n"]).as_py(), pc.sum(table["value"]).as_py(), devices]
query = """select count(*), sum(n)::bigint, sum(value), list_sort(list(distinct device))
    from read_parquet(?)"""
by_duckdb = duckdb.execute(query, [os.path.join(into, "*.parquet")]).fetchone()
json.dump({"pyarrow": by_pyarrow, "duckdb": list(by_duckdb), "codecs": sorted(codecs),
    "said": sum(manifest["rows"] for manifest in manifests), "objects": len(objects)}, sys.stdout)
"#;

#[tokio::test(flavor = "multi_thread")]
async fn others_read_the_parquet_that_is_delivered() {
    let (Some(server), Some(python)) = (Server::start(Kind::Moto).await, python()) else {
        return;
    };
    let node = Node::start();
    let settings = "--format parquet --size 1MiB --partition d=.device \
                    --prefix device=!{partitionKeyFromQuery:d}/ \
                    --error-prefix errors/!{firehose:error-output-type}/";
    node.deliver("readings", 2, &format!("{} {settings}", to(&server)));
    let (mut text, mut sum, mut sum_of_values) = (String::new(), 0, 0.0);
    for n in 0..RECORDS {
        // Halves add up without rounding.
        let value = f64::from(u32::try_from(n).unwrap() % 1_000) / 2.0 - 3.5;
        (sum, sum_of_values) = (sum + n, sum_of_values + value);
        let device = n % DEVICES;
        writeln!(
            text,
            "{{\"device\":\"d{device}\",\"n\":{n},\"value\":{value:?},\"at\":\"2026-03-01T00:00:00Z\"}}"
        )
        .unwrap();
    }
    let words = "produce readings --format ndjson --key n";
    node.flumen(words, text.as_bytes()).good();
    node.flumen("delivery flush lake", b"").good();
    let into = tempfile::tempdir().unwrap();
    let address = server.endpoint();
    let output = Command::new(python)
        .args(["-c", READ, &address])
        .args([ACCESS_KEY, SECRET_KEY, BUCKET])
        .arg(into.path())
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let read: Value = serde_json::from_slice(&output.stdout).unwrap();
    let devices: Vec<_> = (0..DEVICES).map(|device| format!("d{device}")).collect();
    let expected = json!([RECORDS, sum, sum_of_values, devices]);
    assert_eq!((&read["pyarrow"], &read["duckdb"]), (&expected, &expected));
    assert_eq!(read["codecs"], json!(["ZSTD"]));
    assert_eq!(read["said"], RECORDS);
    // A cut is closed at a mebibyte, for all devices at once.
    assert!(read["objects"].as_u64() >= Some(2 * DEVICES), "{read}");
}
