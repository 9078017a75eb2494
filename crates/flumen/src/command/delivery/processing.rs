//! The flags of what is done to records before they are written.

use std::time::Duration;

use anyhow::Result;
use flumen_broker::{HttpTransform, Processing};
use serde_json::json;

use super::settings::{set, set_pairs};
use super::typed::{Apart, Pair, parse_decompress, parse_header, parse_sub_records};
use crate::failure::usage;
use crate::quantity::{parse_duration, parse_size};

/// What is done to records, in this order.
#[derive(Debug, Clone, PartialEq, Default, clap::Args)]
#[command(next_help_heading = "Processing, in this order")]
pub(super) struct ProcessingArgs {
    /// A record's data is gzip
    #[arg(long, value_parser = parse_decompress, value_name = "gzip|none")]
    decompress: Option<bool>,
    /// A record's data is a CloudWatch Logs envelope: its messages are the records
    #[arg(long, value_name = "true|false", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    cloudwatch_logs: Option<bool>,
    /// A record's data holds several records (KPL aggregates are unpacked always)
    #[arg(long, value_parser = parse_sub_records, value_name = "json|delimited:TEXT|none")]
    sub_records: Option<Apart>,
    /// An HTTP endpoint that is handed records in batches and says what becomes of each
    #[arg(long, value_name = "URL")]
    transform_url: Option<String>,
    /// A further header of those requests (may be given several times)
    #[arg(long, value_parser = parse_header, value_name = "NAME:VALUE")]
    transform_header: Vec<Pair>,
    /// Records per request, in bytes, 200kB to 3MB [default: 1MB]
    #[arg(long, value_parser = parse_size, value_name = "SIZE")]
    transform_batch_size: Option<u64>,
    /// Attempts after the first, 0 to 300; then the records go to the error prefix [default: 3]
    #[arg(long, value_name = "N")]
    transform_retries: Option<u32>,
    /// Of one attempt, up to 5m [default: 60s]
    #[arg(long, value_parser = parse_duration, value_name = "TIME")]
    transform_timeout: Option<Duration>,
    /// A jq filter: records for which it says false, null or nothing are dropped
    #[arg(long, value_name = "JQ")]
    filter: Option<String>,
    /// A jq filter: what it gives takes the record's place
    #[arg(long, value_name = "JQ")]
    map: Option<String>,
}

impl ProcessingArgs {
    /// Changes what is given.
    pub(super) fn apply(&self, processing: &mut Processing) -> Result<()> {
        processing.decompress = self.decompress.unwrap_or(processing.decompress);
        processing.cloudwatch_logs = self.cloudwatch_logs.unwrap_or(processing.cloudwatch_logs);
        if let Some(Apart(form)) = &self.sub_records {
            processing.sub_records.clone_from(form);
        }
        set(&mut processing.filter, self.filter.as_ref());
        set(&mut processing.map, self.map.as_ref());
        match (self.transform_url.as_deref(), &mut processing.transform) {
            (Some(""), transform) => *transform = None,
            (Some(url), Some(transform)) => url.clone_into(&mut transform.url),
            (Some(url), transform) => *transform = Some(transform_to(url)),
            (None, _) => {}
        }
        match &mut processing.transform {
            Some(transform) => self.apply_transform(transform),
            None => self.check_no_transform()?,
        }
        Ok(())
    }

    fn apply_transform(&self, transform: &mut HttpTransform) {
        set_pairs(&mut transform.headers, &self.transform_header);
        transform.batch_bytes = self.transform_batch_size.unwrap_or(transform.batch_bytes);
        transform.retries = self.transform_retries.unwrap_or(transform.retries);
        if let Some(timeout) = self.transform_timeout {
            transform.timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        }
    }

    fn check_no_transform(&self) -> Result<()> {
        let of_transform = [
            ("--transform-header", !self.transform_header.is_empty()),
            (
                "--transform-batch-size",
                self.transform_batch_size.is_some(),
            ),
            ("--transform-retries", self.transform_retries.is_some()),
            ("--transform-timeout", self.transform_timeout.is_some()),
        ];
        match of_transform.iter().find(|(_, given)| *given) {
            Some((flag, _)) => Err(usage(format!("{flag} needs --transform-url"))),
            None => Ok(()),
        }
    }
}

/// With the defaults of the JSON form.
fn transform_to(url: &str) -> HttpTransform {
    serde_json::from_value(json!({ "url": url })).expect("BUG: a URL is all that must be set")
}
