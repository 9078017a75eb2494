//! A broker of our own: this binary again as a child process, on free ports.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};

use anyhow::{Context, Result, bail};

/// A child `flumen serve`. Dropping it kills it; when this process dies, it drains and ends.
#[derive(Debug)]
pub(crate) struct BrokerProcess {
    child: Child,
    /// Held open: its end is the child's sign to end.
    _stdin: Option<ChildStdin>,
    grpc: SocketAddr,
    console: SocketAddr,
}

/// How to start one.
#[derive(Debug, Clone)]
pub(crate) struct BrokerPlan {
    /// Its data directory.
    pub(crate) data_dir: PathBuf,
    /// Where its log lines go.
    pub(crate) log: PathBuf,
    /// Ports; 0 takes free ones.
    pub(crate) grpc: SocketAddr,
    /// As above.
    pub(crate) console: SocketAddr,
}

impl BrokerPlan {
    /// In `dir`, on free ports of this machine.
    pub(crate) fn in_dir(dir: &Path) -> Self {
        let free = SocketAddr::from(([127, 0, 0, 1], 0));
        Self {
            data_dir: dir.join("data"),
            log: dir.join("broker.log"),
            grpc: free,
            console: free,
        }
    }

    /// Starts it and waits until it is ready. Blocks.
    pub(crate) fn start(&self) -> Result<BrokerProcess> {
        let log = File::options().create(true).append(true).open(&self.log);
        let log = log.with_context(|| format!("creating {}", self.log.display()))?;
        let program = std::env::current_exe().context("finding this program")?;
        let mut command = Command::new(program);
        command
            .arg("serve")
            .arg("--until-stdin-closes")
            .arg("--data-dir")
            .arg(&self.data_dir);
        command.arg("--listen-grpc").arg(self.grpc.to_string());
        command
            .arg("--listen-console")
            .arg(self.console.to_string());
        // A flumen.toml or FLUMEN_* of the user is about another broker.
        command.arg("--config").arg("/dev/null");
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("FLUMEN_") {
                command.env_remove(name);
            }
        }
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log);
        let mut child = command.spawn().context("starting a broker")?;
        let stdin = child.stdin.take();
        match self.wait(&mut child) {
            Ok((grpc, console)) => Ok(BrokerProcess {
                child,
                _stdin: stdin,
                grpc,
                console,
            }),
            Err(error) => {
                // It has ended, or it never gets ready: either way it goes.
                drop(child.kill());
                drop(child.wait());
                Err(error)
            }
        }
    }

    fn wait(&self, child: &mut Child) -> Result<(SocketAddr, SocketAddr)> {
        let stdout = child
            .stdout
            .take()
            .context("BUG: its output is not a pipe")?;
        let (mut grpc, mut console) = (None, None);
        for line in BufReader::new(stdout).lines() {
            let line = line.context("reading what the broker says")?;
            match line.split_once(' ') {
                Some(("grpc", address)) => grpc = address.trim().parse().ok(),
                Some(("console", address)) => console = address.trim().parse().ok(),
                _ if line == "ready" => {
                    return grpc
                        .zip(console)
                        .context("the broker did not say where it listens");
                }
                _ => {}
            }
        }
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        bail!(
            "the broker did not start: {}",
            log.lines().last().unwrap_or("it said nothing")
        )
    }
}

impl BrokerProcess {
    /// Where it takes records.
    pub(crate) fn grpc(&self) -> SocketAddr {
        self.grpc
    }

    /// Where its metrics are.
    pub(crate) fn console(&self) -> SocketAddr {
        self.console
    }

    /// Its gRPC address as a URL.
    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.grpc)
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL: it gets no chance to tidy up.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.child.kill().context("killing the broker")?;
        self.child.wait().context("waiting for the killed broker")?;
        Ok(())
    }

    /// Asks it to drain, and waits for its end.
    pub(crate) fn end(mut self) -> Result<ExitStatus> {
        self._stdin.take();
        self.child.wait().context("waiting for the broker")
    }
}

impl Drop for BrokerProcess {
    fn drop(&mut self) {
        // It has ended already, or it ends now.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
