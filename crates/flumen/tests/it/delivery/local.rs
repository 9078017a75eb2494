//! A directory: what is produced is what is in the files, byte for byte.

use std::process::Command;

use object_store::local::LocalFileSystem;

use super::node::Node;
use super::reading::Delivered;
use crate::servers::python;

const LINES: usize = 30_000;

/// The stream format of snappy-java, by another implementation of Snappy.
const UNPACK: &str = r#"
import sys, struct, cramjam
data, at = open(sys.argv[1], "rb").read(), 16
assert data[:8] == b"\x82SNAPPY\x00"
while at < len(data):
    (size,) = struct.unpack(">I", data[at:at + 4])
    sys.stdout.buffer.write(bytes(cramjam.snappy.decompress_raw(data[at + 4:at + 4 + size])))
    at += 4 + size
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_gets_the_bytes_that_were_produced() {
    let Some(python) = python() else {
        return;
    };
    let node = Node::start();
    let settings = "--to objects --format delimited --compression snappy --size 1MiB";
    node.deliver("lines", 1, settings);
    let mut produced = Vec::new();
    for n in 0..LINES {
        produced.extend_from_slice(format!("{n} of these lines are text, ").as_bytes());
        // Any bytes but the one that ends a line.
        produced.extend((0..n % 40).map(|at| u8::try_from((n + at * 7) % 245 + 11).unwrap()));
        produced.push(b'\n');
    }
    node.flumen("produce lines --key-fixed k", &produced).good();
    node.flumen("delivery flush lake", b"").good();
    let objects = node.path().join("objects");
    let store = LocalFileSystem::new_with_prefix(&objects).unwrap();
    let delivered = Delivered::read(&store).await;
    assert!(delivered.strays.is_empty(), "{:?}", delivered.strays);
    assert!(delivered.manifests.len() > 1);
    let mut read = Vec::new();
    for object in &delivered.objects {
        let key = object.entry["key"].as_str().unwrap();
        assert!(key.ends_with(".snappy"), "{key}");
        let file = objects.join(key);
        let unpacked = Command::new(&python)
            .args(["-c", UNPACK])
            .arg(file)
            .output()
            .unwrap();
        assert!(unpacked.status.success(), "{unpacked:?}");
        read.extend(unpacked.stdout);
    }
    assert!(
        read == produced,
        "{} of {} bytes",
        read.len(),
        produced.len()
    );
    node.describe_until("probed", |described| {
        described["guarantee"] == "create_if_absent"
    });
}
