//! A broker process that a test starts, kills and starts again.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Small segments, so that a short run rolls, seals, snapshots and recycles.
const CONFIG: &str = "[broker.log]\nsegment_bytes_min = 1048576\nsegment_bytes_max = 4194304\nsnapshot_seals = 3\n\
                      snapshot_interval_ms = 200\nfree_space_floor_bytes = 1048576\n";

/// `flumen serve`, killed when dropped.
#[derive(Debug)]
pub(crate) struct BrokerProcess {
    child: Child,
    /// Where it serves gRPC; empty until it is ready.
    pub(crate) endpoint: String,
    /// Where its console is; empty until it is ready.
    pub(crate) console: String,
}

impl Drop for BrokerProcess {
    fn drop(&mut self) {
        self.kill();
    }
}

impl BrokerProcess {
    /// Starts it on `data`, on a free port, and does not wait.
    pub(crate) fn spawn(data: &Path) -> Self {
        Self::spawn_at(data, "127.0.0.1:0", &[], &[])
    }

    fn spawn_at(data: &Path, grpc: &str, settings: &[&str], environment: &[(&str, &str)]) -> Self {
        let config = data.with_extension("toml");
        std::fs::write(&config, CONFIG).expect("a config file");
        let child = Command::new(env!("CARGO_BIN_EXE_flumen"))
            .arg("serve")
            .arg("--data-dir")
            .arg(data)
            .arg("--config")
            .arg(&config)
            .args(["--listen-grpc", grpc, "--listen-console", "127.0.0.1:0"])
            .args(settings.iter().flat_map(|setting| ["--set", setting]))
            // A test that is killed leaves no broker behind.
            .arg("--until-stdin-closes")
            .stdin(Stdio::piped())
            .env("FLUMEN_LOG", "warn")
            // Otherwise a destination in S3 asks the machine that it runs on, over the network.
            .env("AWS_ACCESS_KEY_ID", "nobody")
            .env("AWS_SECRET_ACCESS_KEY", "nothing")
            .envs(environment.iter().copied())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        Self {
            child,
            endpoint: String::new(),
            console: String::new(),
        }
    }

    /// Starts it and waits until it is ready.
    pub(crate) fn start(data: &Path) -> Self {
        let mut process = Self::spawn(data);
        process.wait_ready();
        process
    }

    /// Starts it with these settings (`key=value`) and waits until it is ready.
    pub(crate) fn start_with(data: &Path, settings: &[&str]) -> Self {
        let mut process = Self::spawn_at(data, "127.0.0.1:0", settings, &[]);
        process.wait_ready();
        process
    }

    /// Starts it where another one was, and waits until it is ready.
    pub(crate) fn start_again(data: &Path, endpoint: &str) -> Self {
        Self::start_in(data, endpoint, &[])
    }

    /// Starts it at this address with more in its environment, and waits until it is ready.
    pub(crate) fn start_in(data: &Path, endpoint: &str, environment: &[(&str, &str)]) -> Self {
        let address = endpoint.trim_start_matches("http://");
        let mut process = Self::spawn_at(data, address, &[], environment);
        process.wait_ready();
        process
    }

    fn wait_ready(&mut self) {
        let output = self.child.stdout.take().expect("its output");
        for line in BufReader::new(output).lines() {
            let line = line.expect("text");
            if let Some(address) = line.strip_prefix("grpc") {
                self.endpoint = format!("http://{}", address.trim());
            }
            if let Some(address) = line.strip_prefix("console") {
                self.console = address.trim().to_owned();
            }
            if line.trim() == "ready" {
                return;
            }
        }
        panic!(
            "the broker ended before it was ready: {:?}",
            self.child.wait()
        );
    }

    /// What the console answers to this path: head and body.
    pub(crate) fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(&self.console).expect("a console");
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
        )
        .expect("a request");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        answer
    }

    /// SIGKILL, and waits until it is gone.
    pub(crate) fn kill(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// SIGTERM, and waits for its end; its exit code.
    pub(crate) fn terminate(&mut self) -> Option<i32> {
        let pid = self.child.id().to_string();
        let status = Command::new("kill")
            .args(["-TERM", &pid])
            .status()
            .expect("kill");
        assert!(status.success(), "kill -TERM {pid}");
        // `wait` would close it, which is a request to end of its own.
        let _stdin = self.child.stdin.take();
        self.child.wait().expect("its end").code()
    }

    /// SIGSTOP: it does nothing more until it is killed.
    pub(crate) fn freeze(&self) {
        let pid = self.child.id().to_string();
        let status = Command::new("kill")
            .args(["-STOP", &pid])
            .status()
            .expect("kill");
        assert!(status.success(), "kill -STOP {pid}");
    }
}
