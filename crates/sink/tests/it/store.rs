//! Object stores as they are: versitygw, moto, s3s-fs.

use std::time::Duration;

use bytes::Bytes;
use flumen_broker::{Destination, ObjectSettings, S3Destination, StoreGuarantee};
use flumen_sink::{
    Destinations, PutPayload, RealDestinations, Store, StoreConfig, StoreError, Stored, Tag,
};
use futures_util::future::join_all;

use crate::servers::{ACCESS_KEY, BUCKET, Kind, SECRET_KEY, Server};

/// Odd, and legal.
const KEY: &str = "a=b/c d+e!/2026-11-27T00:00:00Z/ü&%41(1)~.json";

/// A bucket of a server.
fn destination(server: &Server, bucket: &str) -> Destination {
    Destination::S3(S3Destination {
        bucket: bucket.to_owned(),
        endpoint: Some(server.endpoint()),
        region: Some("us-east-1".to_owned()),
        ca_file: server.ca_file().map(Into::into),
        ..S3Destination::default()
    })
}

/// What opens it.
fn destinations(secret: &'static str) -> RealDestinations {
    RealDestinations::new(move |name| match name {
        "AWS_ACCESS_KEY_ID" => Some(ACCESS_KEY.to_owned()),
        "AWS_SECRET_ACCESS_KEY" => Some(secret.to_owned()),
        _ => None,
    })
}

fn open(server: &Server, bucket: &str, secret: &'static str) -> Store {
    open_with(server, bucket, secret, &ObjectSettings::default())
}

fn open_with(
    server: &Server,
    bucket: &str,
    secret: &'static str,
    object: &ObjectSettings,
) -> Store {
    let destination = destination(server, bucket);
    destinations(secret)
        .open(&destination, object, &StoreConfig::default())
        .unwrap()
}

fn tag(cut: &str, body: &[u8]) -> Tag {
    Tag {
        cut: cut.to_owned(),
        crc32: crc32fast::hash(body),
        bytes: body.len() as u64,
        content_type: "application/x-ndjson".to_owned(),
        content_encoding: Some("gzip".to_owned()),
    }
}

async fn create(store: &Store, key: &str, cut: &str, body: &str) -> Result<Stored, StoreError> {
    let payload = PutPayload::from(Bytes::copy_from_slice(body.as_bytes()));
    store.create(key, payload, &tag(cut, body.as_bytes())).await
}

/// What every store does, whatever it promises.
async fn creates_looks_and_reads(store: &Store) {
    assert_eq!(store.look(KEY).await.unwrap(), None);
    assert_eq!(store.read(KEY, 10).await.unwrap_err().reason(), "missing");
    let stored = create(store, KEY, "d1-7-1", "body").await.unwrap();
    assert_eq!((stored.bytes, stored.was_there), (4, false));

    let found = store.look(KEY).await.unwrap().unwrap();
    assert_eq!(found.bytes, 4);
    assert_eq!(found.cut.as_deref(), Some("d1-7-1"));
    assert_eq!(found.crc32, Some(crc32fast::hash(b"body")));
    assert_eq!(found.e_tag, stored.e_tag);
    assert_eq!(found.content_type.as_deref(), Some("application/x-ndjson"));
    assert_eq!(store.read(KEY, 4).await.unwrap().as_ref(), b"body");
    assert_eq!(store.read(KEY, 3).await.unwrap_err().reason(), "too_large");

    let again = create(store, KEY, "d1-7-1", "body").await.unwrap();
    assert_eq!((again.bytes, again.was_there), (4, true));
    assert_eq!(again.e_tag, stored.e_tag);
    let other = create(store, KEY, "d1-8-1", "bodi").await.unwrap_err();
    assert_eq!(other.reason(), "conflict", "{other}");
    assert_eq!(store.read(KEY, 4).await.unwrap().as_ref(), b"body");

    let empty = create(store, "empty", "d1-7-1", "").await.unwrap();
    assert_eq!(empty.bytes, 0);
    assert_eq!(store.read("empty", 0).await.unwrap().as_ref(), b"");

    let piece = Bytes::from(vec![7; 1 << 20]);
    let body: Vec<u8> = piece.repeat(20);
    let payload: PutPayload = std::iter::repeat_n(piece, 20).collect();
    let large = store.create("large", payload, &tag("d1-7-1", &body)).await;
    assert_eq!(large.unwrap().bytes, 20 << 20);
    assert!(store.read("large", 20 << 20).await.unwrap() == body);
}

/// What only an atomic store does.
async fn lets_one_racer_win(store: &Store) {
    for round in 0..4 {
        let key = format!("race/{round}");
        let cuts: Vec<String> = (0..8).map(|racer| format!("d1-{racer}-1")).collect();
        let results = join_all(cuts.iter().map(|cut| create(store, &key, cut, cut))).await;
        let mut won = Vec::new();
        for (cut, result) in cuts.iter().zip(&results) {
            match result {
                Ok(stored) => {
                    assert!(!stored.was_there);
                    won.push(cut);
                }
                Err(error) => assert_eq!(error.reason(), "conflict", "{error}"),
            }
        }
        assert_eq!(won.len(), 1, "{results:?}");
        assert_eq!(
            store.read(&key, 100).await.unwrap().as_ref(),
            won[0].as_bytes()
        );

        let key = format!("same/{round}");
        let same = (0..8).map(|_| create(store, &key, "d1-7-1", "body"));
        let results = join_all(same).await;
        let fresh = results
            .iter()
            .filter(|stored| !stored.as_ref().unwrap().was_there);
        assert_eq!(fresh.count(), 1, "{results:?}");
    }
}

async fn is_probed(store: &Store, expected: StoreGuarantee) {
    let guarantee = store.probe("lake/", 77).await.unwrap();
    assert_eq!(guarantee, expected);
    for race in 0..3 {
        let left = store.look(&format!("lake/_probe/{:032x}-{race}", 77)).await;
        assert_eq!(left.unwrap(), None);
    }
}

async fn says_that_there_is_no_bucket(server: &Server) {
    let store = open(server, "nowhere", SECRET_KEY);
    let error = create(&store, "k", "d1-7-1", "body").await.unwrap_err();
    assert_eq!(error.reason(), "no_such_bucket", "{error}");
    assert!(error.to_string().contains("s3://nowhere"), "{error}");
    assert!(!error.is_permanent());
    let error = store.read("k", 4).await.unwrap_err();
    assert_eq!(error.reason(), "no_such_bucket", "{error}");
    let error = store.probe("", 77).await.unwrap_err();
    assert_eq!(error.reason(), "no_such_bucket", "{error}");
}

async fn denies_a_wrong_secret(server: &Server) {
    let store = open(server, BUCKET, "a wrong secret");
    let error = create(&store, "denied", "d1-7-1", "body")
        .await
        .unwrap_err();
    assert_eq!(error.reason(), "denied", "{error}");
    assert!(!error.to_string().contains("a wrong secret"), "{error}");
    let store = open(server, BUCKET, SECRET_KEY);
    assert_eq!(store.look("denied").await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn versitygw_keeps_all_promises() {
    let Some(server) = Server::start(Kind::Versitygw).await else {
        return;
    };
    let store = open(&server, BUCKET, SECRET_KEY);
    assert!(
        store
            .describe()
            .starts_with("s3://lake at http://127.0.0.1:")
    );
    creates_looks_and_reads(&store).await;
    // The key is the name of the file, letter by letter.
    assert_eq!(std::fs::read(server.file(KEY)).unwrap(), b"body");
    let found = store.look(KEY).await.unwrap().unwrap();
    assert_eq!(found.content_encoding.as_deref(), Some("gzip"));
    lets_one_racer_win(&store).await;
    is_probed(&store, StoreGuarantee::CreateIfAbsent).await;
    says_that_there_is_no_bucket(&server).await;
    denies_a_wrong_secret(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn moto_takes_everything_that_s3_takes() {
    let Some(server) = Server::start(Kind::Moto).await else {
        return;
    };
    let object = ObjectSettings {
        storage_class: Some("STANDARD_IA".to_owned()),
        cache_control: Some("no-cache".to_owned()),
        metadata: [("team".to_owned(), "The lake".to_owned())].into(),
        ..ObjectSettings::default()
    };
    let store = open_with(&server, BUCKET, SECRET_KEY, &object);
    creates_looks_and_reads(&store).await;
    let url = format!("{}/{BUCKET}/large", server.endpoint());
    // It takes any signature.
    let signature = "AWS4-HMAC-SHA256 Credential=any/20261127/us-east-1/s3/aws4_request, \
                     SignedHeaders=host, Signature=any";
    let asked = reqwest::Client::new()
        .head(url)
        .header("authorization", signature);
    let seen = asked.send().await.unwrap();
    let header = |name: &str| seen.headers()[name].to_str().unwrap().to_owned();
    assert_eq!(header("x-amz-storage-class"), "STANDARD_IA");
    assert_eq!(header("cache-control"), "no-cache");
    assert_eq!(header("content-encoding"), "gzip");
    assert_eq!(header("x-amz-meta-team"), "The lake");
    assert_eq!(header("x-amz-meta-flumen-cut"), "d1-7-1");
    // It looks and then writes, too close together to be caught each time.
    let guarantee = store.probe("lake/", 77).await.unwrap();
    assert_ne!(guarantee, StoreGuarantee::Unknown);
    says_that_there_is_no_bucket(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn s3s_fs_is_found_out() {
    let Some(server) = Server::start(Kind::S3sFs).await else {
        return;
    };
    let store = open(&server, BUCKET, SECRET_KEY);
    creates_looks_and_reads(&store).await;
    is_probed(&store, StoreGuarantee::ManifestsOnly).await;
    denies_a_wrong_secret(&server).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_goes_and_comes_back_is_found_again() {
    let Some(mut server) = Server::start(Kind::Versitygw).await else {
        return;
    };
    let store = open(&server, BUCKET, SECRET_KEY);
    create(&store, "before", "d1-7-1", "body").await.unwrap();
    server.kill();
    let error = create(&store, "after", "d1-8-1", "body").await.unwrap_err();
    assert_eq!(error.reason(), "unreachable", "{error}");
    assert!(!error.is_permanent());
    server.start_again().await;
    assert!(
        !create(&store, "after", "d1-8-1", "body")
            .await
            .unwrap()
            .was_there
    );
    assert!(
        create(&store, "before", "d1-7-1", "body")
            .await
            .unwrap()
            .was_there
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authority_of_ones_own_is_trusted_when_it_is_named() {
    let Some(server) = Server::start_with_tls().await else {
        return;
    };
    let store = open(&server, BUCKET, SECRET_KEY);
    create(&store, "k", "d1-7-1", "body").await.unwrap();
    let Destination::S3(bucket) = destination(&server, BUCKET) else {
        panic!("no bucket")
    };
    let without = Destination::S3(S3Destination {
        ca_file: None,
        ..bucket
    });
    let store = destinations(SECRET_KEY)
        .open(
            &without,
            &ObjectSettings::default(),
            &StoreConfig::default(),
        )
        .unwrap();
    let error = create(&store, "l", "d1-7-1", "body").await.unwrap_err();
    assert_eq!(error.reason(), "unreachable");
    assert!(error.to_string().contains("certificate"), "{error}");
}

/// Nobody listens, and nobody answers: an attempt ends all the same.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_there_and_nobody_answering_are_errors_in_time() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = silent.local_addr().unwrap().port();
    let config = StoreConfig {
        request_timeout_ms: 300,
        ..StoreConfig::default()
    };
    let open = |destinations: RealDestinations, port: u16| {
        let destination = Destination::S3(S3Destination {
            bucket: BUCKET.to_owned(),
            endpoint: Some(format!("http://127.0.0.1:{port}")),
            ..S3Destination::default()
        });
        destinations
            .open(&destination, &ObjectSettings::default(), &config)
            .unwrap()
    };
    let store = open(destinations(SECRET_KEY), port);
    let attempt = create(&store, "k", "d1-7-1", "body");
    let ended = tokio::time::timeout(Duration::from_secs(30), attempt).await;
    assert_eq!(ended.unwrap().unwrap_err().reason(), "timeout");
    drop(silent);
    let error = create(&store, "k", "d1-7-1", "body").await.unwrap_err();
    assert_eq!(error.reason(), "unreachable", "{error}");

    let nobody = RealDestinations::new(|name| {
        (name == "AWS_EC2_METADATA_DISABLED").then(|| "true".to_owned())
    });
    let error = create(&open(nobody, port), "k", "d1-7-1", "body")
        .await
        .unwrap_err();
    assert_eq!(error.reason(), "no_credentials", "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_tls_is_told_from_one_that_is_not_there() {
    let Some(server) = Server::start(Kind::Versitygw).await else {
        return;
    };
    let Destination::S3(bucket) = destination(&server, BUCKET) else {
        panic!("no bucket")
    };
    let with_tls = Destination::S3(S3Destination {
        endpoint: Some(server.endpoint().replace("http://", "https://")),
        ..bucket
    });
    let store = destinations(SECRET_KEY)
        .open(
            &with_tls,
            &ObjectSettings::default(),
            &StoreConfig::default(),
        )
        .unwrap();
    let error = store.look("k").await.unwrap_err();
    assert_eq!(error.reason(), "unreachable");
    assert!(error.to_string().contains("answers without TLS"), "{error}");
}
