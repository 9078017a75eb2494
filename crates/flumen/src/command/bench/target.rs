//! The broker that is measured: the one asked for, the one that is there, or one of our own.

use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result};
use flumen_client::{Client, ClientConfig};

use crate::broker_process::{BrokerPlan, BrokerProcess};
use crate::cli::Context;
use crate::failure::of_client;

/// Where the broker is. A client belongs to the runtime it is made on, so that is done there.
#[derive(Debug, Clone)]
pub(super) struct Endpoint(String);

impl Endpoint {
    /// A client on a connection of its own.
    pub(super) fn client(&self) -> Result<Client> {
        let client = Client::connect(ClientConfig::new(&self.0));
        client.map_err(|error| of_client(error, &self.0))
    }
}

/// Who is measured. Dropping it ends a broker of our own and removes its files.
#[derive(Debug)]
pub(super) struct Target {
    endpoint: String,
    /// Before its directory, so that it ends first.
    _own: Option<BrokerProcess>,
    _dir: Option<tempfile::TempDir>,
}

impl Target {
    /// With no `--endpoint` given and no broker there, starts one and says so.
    pub(super) fn find(context: &mut Context) -> Result<Self> {
        let there = context.endpoint.is_some() || answers();
        if there {
            return Ok(Self {
                endpoint: context.endpoint().to_owned(),
                _own: None,
                _dir: None,
            });
        }
        let dir = tempfile::Builder::new().prefix("flumen-bench-").tempdir();
        let dir = dir.context("creating a directory for a broker of our own")?;
        let own = BrokerPlan::in_dir(dir.path()).start()?;
        let note = format!(
            "no broker at {}: measuring one of our own, started for this (process {}, data in {})",
            context.endpoint(),
            own.pid(),
            dir.path().display()
        );
        context.output.note(&note);
        Ok(Self {
            endpoint: own.endpoint(),
            _own: Some(own),
            _dir: Some(dir),
        })
    }

    /// Where it is.
    pub(super) fn endpoint(&self) -> Endpoint {
        Endpoint(self.endpoint.clone())
    }

    /// A client on a connection of its own, for the runtime that this is called on.
    pub(super) fn client(&self) -> Result<Client> {
        self.endpoint().client()
    }

    /// The error with what to try next.
    pub(super) fn explain(&self, error: flumen_client::Error) -> anyhow::Error {
        of_client(error, &self.endpoint)
    }
}

fn answers() -> bool {
    let usual = SocketAddr::from(([127, 0, 0, 1], 4500));
    TcpStream::connect_timeout(&usual, Duration::from_millis(500)).is_ok()
}
