//! Servers that a measurement starts and stops: Flumen, Redis, the bare echo.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::Bench;
use crate::shell::output;

/// A child process that is killed when dropped.
pub(crate) struct Server {
    pub(crate) child: Child,
    /// Where it listens: an URL, or a port's number.
    pub(crate) address: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    /// A broker on `data`, ready.
    pub(crate) fn flumen(bench: &Bench, data: &Path) -> Result<Self> {
        Self::flumen_with(bench, data, &[])
    }

    /// The same with more arguments.
    pub(crate) fn flumen_with(bench: &Bench, data: &Path, arguments: &[&str]) -> Result<Self> {
        let mut child = Command::new(&bench.flumen)
            .arg("serve")
            .arg("--data-dir")
            .arg(data)
            .args(arguments)
            .args([
                "--listen-grpc",
                "127.0.0.1:0",
                "--listen-console",
                "127.0.0.1:0",
            ])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("flumen serve")?;
        let lines = BufReader::new(child.stdout.take().context("its output")?).lines();
        let mut address = String::new();
        for line in lines {
            let line = line?;
            if line.trim() == "ready" {
                return Ok(Self {
                    child,
                    address: format!("http://{address}"),
                });
            }
            if let Some(listener) = line.strip_prefix("grpc") {
                address = listener.trim().to_owned();
            }
        }
        bail!("flumen serve ended before it was ready");
    }

    /// Redis with every write synced before its answer.
    pub(crate) fn redis(data: &Path) -> Result<Self> {
        std::fs::create_dir_all(data)?;
        let port = free_port()?;
        let child = Command::new("redis-server")
            .args([
                "--port",
                &port,
                "--bind",
                "127.0.0.1",
                "--save",
                "",
                "--dir",
            ])
            .arg(data)
            .args(["--appendonly", "yes", "--appendfsync", "always"])
            .stdout(Stdio::null())
            .spawn()
            .context("redis-server")?;
        let server = Self {
            child,
            address: port,
        };
        server.wait_for_redis()?;
        Ok(server)
    }

    fn wait_for_redis(&self) -> Result<()> {
        let deadline = now() + Duration::from_secs(10);
        while now() < deadline {
            let ping = output(Command::new("redis-cli").args(["-p", &self.address, "ping"]));
            if ping.is_ok_and(|answer| answer.trim() == "PONG") {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        bail!("redis-server does not answer");
    }

    /// The bare RPC echo.
    pub(crate) fn echo(bench: &Bench) -> Result<Self> {
        let mut child = Command::new(&bench.echo)
            .arg("serve")
            .stdout(Stdio::piped())
            .spawn()
            .context("rpc_echo")?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("its output")?).read_line(&mut line)?;
        Ok(Self {
            child,
            address: format!("http://{}", line.trim()),
        })
    }

    /// Runs another command against it.
    pub(crate) fn run(&self, bench: &Bench, words: &str) -> Result<String> {
        output(
            Command::new(&bench.flumen)
                .args(["--endpoint", &self.address])
                .args(words.split_whitespace()),
        )
    }

    /// Runs `flumen bench …` against it and returns the JSON object it prints.
    pub(crate) fn bench(&self, bench: &Bench, words: &str) -> Result<Value> {
        let printed = output(
            Command::new(&bench.flumen)
                .args(["--endpoint", &self.address, "--output", "json", "bench"])
                .args(words.split_whitespace()),
        )?;
        let last = printed.lines().last().context("it printed nothing")?;
        serde_json::from_str(last).with_context(|| format!("not JSON: {last}"))
    }

    /// A value of `/proc/PID/status`, in bytes.
    pub(crate) fn memory(&self, name: &str) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status
            .lines()
            .find(|line| line.starts_with(name))
            .context("no such value")?;
        let kib: u64 = line
            .split_whitespace()
            .nth(1)
            .context("no number")?
            .parse()?;
        Ok(kib << 10)
    }

    /// CPU time it has used, in seconds.
    pub(crate) fn cpu_seconds(&self) -> Result<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let fields: Vec<&str> = stat
            .rsplit(')')
            .next()
            .unwrap_or_default()
            .split_whitespace()
            .collect();
        let ticks = |at: usize| fields.get(at).and_then(|text| text.parse::<f64>().ok());
        // utime and stime are the 14th and 15th fields of stat(5); two stand before the parenthesis.
        match (ticks(11), ticks(12)) {
            (Some(user), Some(system)) => Ok((user + system) / 100.0),
            _ => bail!("/proc/PID/stat reads differently here"),
        }
    }

    /// Bytes it made the disk read.
    pub(crate) fn disk_read_bytes(&self) -> Result<u64> {
        let io = std::fs::read_to_string(format!("/proc/{}/io", self.child.id()))?;
        let line = io.lines().find_map(|line| line.strip_prefix("read_bytes:"));
        Ok(line.context("no read_bytes")?.trim().parse()?)
    }
}

/// Now, for waiting and timing.
#[expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// A number out of a JSON object.
pub(crate) fn number(object: &Value, key: &str) -> Result<f64> {
    object
        .get(key)
        .and_then(Value::as_f64)
        .with_context(|| format!("no `{key}` in {object}"))
}

/// A loopback port that is free now.
pub(crate) fn free_port() -> Result<String> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?
        .local_addr()?
        .port()
        .to_string())
}
