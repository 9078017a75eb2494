//! Who reads what was delivered: manifests first, then the objects that they name.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::process::{Command, Stdio};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use futures_util::TryStreamExt;
use object_store::aws::AmazonS3Builder;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use serde_json::Value;

use crate::servers::{ACCESS_KEY, BUCKET, SECRET_KEY, Server};

/// An object, with what its manifest says of it.
#[derive(Debug)]
pub(super) struct Object {
    pub(super) entry: Value,
    pub(super) bytes: Bytes,
}

/// What a reader of the manifests sees.
#[derive(Debug)]
pub(super) struct Delivered {
    /// In the order of cuts.
    pub(super) manifests: Vec<Value>,
    /// In the order of manifests.
    pub(super) objects: Vec<Object>,
    /// Keys that no manifest names.
    pub(super) strays: BTreeSet<String>,
}

/// The bucket of a server, by way of another client's settings than the sink's.
pub(super) fn bucket(server: &Server) -> impl ObjectStore {
    AmazonS3Builder::new()
        .with_endpoint(server.endpoint())
        .with_bucket_name(BUCKET)
        .with_region("us-east-1")
        .with_access_key_id(ACCESS_KEY)
        .with_secret_access_key(SECRET_KEY)
        .with_allow_http(true)
        .build()
        .unwrap()
}

impl Delivered {
    /// Reads everything, and checks that the manifests say what is there.
    pub(super) async fn read(store: &impl ObjectStore) -> Self {
        let listed: Vec<_> = store.list(None).try_collect().await.unwrap();
        let mut strays: BTreeSet<String> = listed
            .into_iter()
            .map(|meta| meta.location.to_string())
            .collect();
        // Their names sort as their numbers do.
        let keys: Vec<_> = strays
            .iter()
            .filter(|key| key.contains("_manifest/"))
            .cloned()
            .collect();
        let (mut manifests, mut objects) = (Vec::new(), Vec::new());
        for key in keys {
            strays.remove(&key);
            let manifest: Value = serde_json::from_slice(&get(store, &key).await).unwrap();
            for entry in manifest["objects"].as_array().unwrap() {
                let key = entry["key"].as_str().unwrap();
                assert!(strays.remove(key), "{key} is named twice, or not there");
                let bytes = get(store, key).await;
                assert_eq!(entry["bytes"], bytes.len(), "{entry}");
                if let Some(crc32) = entry["crc32"].as_str() {
                    assert_eq!(crc32, format!("{:08x}", crc32fast::hash(&bytes)), "{entry}");
                }
                let entry = entry.clone();
                objects.push(Object { entry, bytes });
            }
            manifests.push(manifest);
        }
        let read = Self {
            manifests,
            objects,
            strays,
        };
        read.expect_contiguous();
        read
    }

    /// Cut numbers have no gap, and each shard's ranges follow each other.
    fn expect_contiguous(&self) {
        let mut ends: BTreeMap<u64, u64> = BTreeMap::new();
        for (at, manifest) in self.manifests.iter().enumerate() {
            assert_eq!(manifest["cut"], at);
            for range in manifest["ranges"].as_array().unwrap() {
                let number = |name: &str| range[name].as_u64().unwrap();
                let end = ends.entry(number("shard")).or_insert(0);
                assert_eq!(*end, number("from"), "cut {at}");
                *end = number("to");
            }
        }
    }

    /// Objects of a kind.
    pub(super) fn objects(&self, kind: &str) -> impl Iterator<Item = &Object> {
        self.objects
            .iter()
            .filter(move |object| object.entry["kind"] == kind)
    }

    /// The lines of the data objects, as JSON, each with the object it is in.
    pub(super) fn rows(&self) -> Vec<(Value, &Object)> {
        self.objects("data")
            .flat_map(|object| {
                let rows = object.lines();
                assert_eq!(object.entry["records"], rows.len(), "{}", object.entry);
                rows.into_iter().map(move |row| (row, object))
            })
            .collect()
    }

    /// What the error objects hold, as the records were.
    pub(super) fn failed(&self) -> Vec<Value> {
        let raw = |line: Value| {
            let raw = line["rawData"].as_str().unwrap();
            serde_json::from_slice(&BASE64_STANDARD.decode(raw).unwrap()).unwrap()
        };
        self.objects("error")
            .flat_map(|object| object.lines().into_iter().map(raw))
            .collect()
    }
}

impl Object {
    /// Its bytes before they were compressed, by the usual tool.
    pub(super) fn unpacked(&self) -> Vec<u8> {
        match self.entry["compression"].as_str().unwrap() {
            "none" => self.bytes.to_vec(),
            "gzip" => pipe("gzip", &self.bytes),
            "zstd" => pipe("zstd", &self.bytes),
            other => panic!("no tool for {other}"),
        }
    }

    fn lines(&self) -> Vec<Value> {
        let text = String::from_utf8(self.unpacked()).unwrap();
        assert!(text.ends_with('\n'), "{}", self.entry);
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }
}

async fn get(store: &impl ObjectStore, key: &str) -> Bytes {
    let path = Path::parse(key).unwrap();
    store.get(&path).await.unwrap().bytes().await.unwrap()
}

/// `gzip -dc` and the like.
fn pipe(program: &str, input: &[u8]) -> Vec<u8> {
    let mut child = Command::new(program)
        .arg("-dc")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut stdin, input) = (child.stdin.take().unwrap(), input.to_vec());
    let writing = std::thread::spawn(move || stdin.write_all(&input).unwrap());
    let output = child.wait_with_output().unwrap();
    writing.join().unwrap();
    assert!(output.status.success(), "{program}: {}", output.status);
    output.stdout
}
