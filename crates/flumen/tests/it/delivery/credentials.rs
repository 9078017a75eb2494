//! Wrong credentials are named, and right ones count without a restart; over TLS, with a certificate
//! of an authority of one's own.

use std::path::Path;

use super::node::{Node, to};
use super::reading::Delivered;
use crate::servers::{ACCESS_KEY, SECRET_KEY, Server};

fn write(file: &Path, secret: &str) {
    let text =
        format!("[lake]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {secret}\n");
    std::fs::write(file, text).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_that_are_put_right_count_without_a_restart() {
    let Some(server) = Server::start_with_tls().await else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("credentials");
    let environment = [("AWS_SHARED_CREDENTIALS_FILE", file.display().to_string())];
    let node = Node::start_with(environment.to_vec());
    let ca_file = server.ca_file().unwrap().display();
    let settings = format!(
        "{} --ca-file {ca_file} --profile lake --format ndjson --interval 0",
        to(&server)
    );
    node.deliver("readings", 1, &settings);
    node.flumen("produce readings", b"{\"n\":0}\n{\"n\":1}\n")
        .good();

    let without = node.describe_until("without a profile", |described| {
        described["status"] == "retrying" && described["last_error"]["reason"] == "no_credentials"
    });
    let text = without["last_error"]["text"].as_str().unwrap();
    assert!(
        text.contains("there is no profile `lake`; write it"),
        "{text}"
    );

    write(&file, "wrong");
    let denied = node.describe_until("denied", |described| {
        described["status"] == "retrying" && described["last_error"]["reason"] == "denied"
    });
    let text = denied["last_error"]["text"].as_str().unwrap();
    assert!(
        text.contains("SignatureDoesNotMatch") && text.contains("check the credentials"),
        "{text}"
    );
    assert_eq!(denied["backlog_records"], 2, "{denied:#}");

    write(&file, SECRET_KEY);
    let right = node.describe_until("delivered", |described| described["backlog_records"] == 0);
    assert_eq!(right["status"], "running", "{right:#}");
    assert_eq!(right["last_error"]["times"], 0, "{right:#}");
    let text = node.flumen("delivery describe lake", b"").good();
    assert!(text.contains("last error denied (over)"), "{text}");

    // versitygw keeps files: nobody else has to trust its certificate.
    let files = server.file("");
    let store = object_store::local::LocalFileSystem::new_with_prefix(files).unwrap();
    assert_eq!(Delivered::read(&store).await.rows().len(), 2);
}
