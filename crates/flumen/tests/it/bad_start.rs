//! `serve` that must not start: one clear line, exit 1, and nothing changed.

use std::net::TcpListener;
use std::path::Path;

use crate::cli::run;
use crate::process::BrokerProcess;

const FREE: &str = "--listen-grpc 127.0.0.1:0 --listen-console 127.0.0.1:0";

fn serve(dir: &Path, more: &str) -> crate::cli::Ran {
    run(dir, &format!("serve {more}"), b"")
}

#[test]
fn a_second_server_on_one_directory() {
    let dir = tempfile::tempdir().unwrap();
    let _first = BrokerProcess::start(&dir.path().join("data"));
    serve(dir.path(), &format!("{FREE} --data-dir data")).refused(1, "in use");
}

#[test]
fn a_port_that_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let held = TcpListener::bind(taken).unwrap();
    let words = format!("--listen-grpc {taken} --listen-console 127.0.0.1:0");
    serve(dir.path(), &words).refused(1, "--listen-grpc takes another address");
    let words = format!("--listen-grpc 127.0.0.1:0 --listen-console {taken}");
    serve(dir.path(), &words).refused(1, "--listen-console takes another address");
    assert!(!dir.path().join("flumen-data").exists());
    drop(held);
}

#[test]
fn somebody_elses_directory() {
    let dir = tempfile::tempdir().unwrap();
    let theirs = dir.path().join("theirs");
    std::fs::create_dir(&theirs).unwrap();
    std::fs::write(theirs.join("precious.txt"), "do not touch").unwrap();
    serve(dir.path(), &format!("{FREE} --data-dir theirs")).refused(1, "theirs");
    let inside: Vec<_> = std::fs::read_dir(&theirs)
        .unwrap()
        .map(|f| f.unwrap().file_name())
        .collect();
    assert_eq!(inside, ["precious.txt"]);
}

#[test]
fn a_directory_that_cannot_be_written() {
    let dir = tempfile::tempdir().unwrap();
    // Not even root may create files here.
    serve(
        dir.path(),
        &format!("{FREE} --data-dir /sys/kernel/flumen-data"),
    )
    .refused(1, "/sys/kernel/flumen-data");
    std::fs::write(dir.path().join("file"), "x").unwrap();
    serve(dir.path(), &format!("{FREE} --data-dir file")).refused(1, "file");
}

#[test]
fn settings_that_are_none() {
    let dir = tempfile::tempdir().unwrap();
    let write = |text: &str| std::fs::write(dir.path().join("flumen.toml"), text).unwrap();
    write("data_dri = \"x\"\n");
    serve(dir.path(), FREE).refused(
        1,
        "flumen.toml: there is no setting data_dri; did you mean data_dir?",
    );
    write("[broker]\nround_bytes_max = \"lots\"\n");
    serve(dir.path(), FREE).refused(1, "broker.round_bytes_max = lots");
    write("[broker\n");
    serve(dir.path(), FREE).refused(1, "flumen.toml: line 1");
    write("");
    serve(dir.path(), "--config missing.toml").refused(1, "missing.toml");
    serve(dir.path(), "--set nonsense=1").refused(1, "there is no setting nonsense");
    serve(dir.path(), "--log !!=").refused(1, "log filter");
    serve(dir.path(), "--set nonsense").refused(2, "KEY=VALUE");
}

#[test]
fn an_address_that_others_reach() {
    let dir = tempfile::tempdir().unwrap();
    for words in [
        "--listen-grpc 0.0.0.0:0",
        "--listen-grpc [::]:0",
        "--listen-console 0.0.0.0:0",
        "--dev --listen-grpc 0.0.0.0:0",
    ] {
        serve(dir.path(), words).refused(1, "neither TLS nor authentication");
    }
    assert!(!dir.path().join("flumen-data").exists());
}
