//! A broker process and the commands that are run against it.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::cli::{Ran, Running, run, start};
use crate::process::BrokerProcess;
use crate::servers::{ACCESS_KEY, SECRET_KEY, Server};

/// Between looks at what is waited for, beside what the command takes.
const PAUSE: Duration = Duration::from_millis(20);
/// Looks, of some 50 ms each. Nothing takes longer, unless something is wrong.
const LOOKS_MAX: u32 = 1_000;

/// A node that can be killed and started again on its data and at its address.
pub(super) struct Node {
    dir: tempfile::TempDir,
    broker: BrokerProcess,
    environment: Vec<(&'static str, String)>,
}

impl Node {
    /// One that knows the only user of the servers.
    pub(super) fn start() -> Self {
        let user = [
            ("AWS_ACCESS_KEY_ID", ACCESS_KEY),
            ("AWS_SECRET_ACCESS_KEY", SECRET_KEY),
        ];
        Self::start_with(user.map(|(name, value)| (name, value.to_owned())).to_vec())
    }

    /// One with this in its environment.
    pub(super) fn start_with(environment: Vec<(&'static str, String)>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let broker = serve(dir.path(), "127.0.0.1:0", &environment);
        Self {
            dir,
            broker,
            environment,
        }
    }

    /// SIGKILL.
    pub(super) fn kill(&mut self) {
        self.broker.kill();
    }

    /// Starts it again after [`Self::kill`].
    pub(super) fn start_again(&mut self) {
        self.broker = serve(self.dir.path(), &self.broker.endpoint, &self.environment);
    }

    /// The folder that commands run in.
    pub(super) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Starts a command.
    pub(super) fn begin(&self, words: &str, input: &[u8]) -> Running {
        start(self.path(), &self.at(words), input)
    }

    /// Runs a command.
    pub(super) fn flumen(&self, words: &str, input: &[u8]) -> Ran {
        run(self.path(), &self.at(words), input)
    }

    fn at(&self, words: &str) -> String {
        format!("--endpoint {} {words}", self.broker.endpoint)
    }

    /// The only line of a command that writes JSON.
    pub(super) fn json(&self, words: &str) -> Value {
        let out = self.flumen(&format!("--output json {words}"), b"").good();
        serde_json::from_str(out.trim()).unwrap()
    }

    /// Creates a stream and delivers it.
    pub(super) fn deliver(&self, stream: &str, shards: u32, words: &str) {
        let stream_words = format!("stream create {stream} --shards {shards}");
        self.flumen(&stream_words, b"").good();
        let words = format!("delivery create lake --stream {stream} {words}");
        self.flumen(&words, b"").good();
    }

    /// What `delivery describe` says, when it says so.
    pub(super) fn describe_until(&self, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
        let mut described = Value::Null;
        for _ in 0..LOOKS_MAX {
            described = self.json("delivery describe lake");
            if is_so(&described) {
                return described;
            }
            std::thread::sleep(PAUSE);
        }
        panic!("never {what}: {described:#}");
    }

    /// A number of the delivery stream on the metrics page.
    pub(super) fn metric(&self, name: &str) -> f64 {
        let page = self.broker.get("/metrics");
        let beginning = format!("{name}{{delivery=\"lake\"}} ");
        let value = page.lines().find_map(|line| line.strip_prefix(&beginning));
        let Some(value) = value else {
            panic!("{beginning} is missing in\n{page}");
        };
        value.parse().unwrap()
    }
}

fn serve(dir: &Path, address: &str, environment: &[(&'static str, String)]) -> BrokerProcess {
    let environment: Vec<_> = environment
        .iter()
        .map(|(name, value)| (*name, value.as_str()))
        .collect();
    BrokerProcess::start_in(&dir.join("data"), address, &environment)
}

/// The destination as it is typed: the bucket, and a prefix in it.
pub(super) fn to(server: &Server) -> String {
    let bucket = crate::servers::BUCKET;
    format!(
        "--to s3://{bucket}/flumen --s3-endpoint {}",
        server.endpoint()
    )
}
