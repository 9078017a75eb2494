//! A bucket: its region, its server, its certificates.

use std::sync::Arc;
use std::time::Duration;

use flumen_broker::{S3Destination, SettingRefused};
use object_store::aws::{AmazonS3Builder, Checksum, S3ConditionalPut};
use object_store::{Certificate, ClientOptions, HeaderValue, ObjectStore, RetryConfig};

use super::StoreConfig;
use super::answer::AnswerConnector;
use super::credentials::chain;
use super::destinations::{Lookup, refused};
use super::profile::{Profile, ProfileFiles};

/// What requests call themselves.
const USER_AGENT: HeaderValue =
    HeaderValue::from_static(concat!("flumen/", env!("CARGO_PKG_VERSION")));
/// Bytes of a file with certificates at most.
const CA_BYTES_MAX: u64 = 1 << 20;

/// Where a bucket is, once everything is asked that may say so.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    region: String,
    /// `None`: AWS.
    endpoint: Option<String>,
    path_style: bool,
}

/// A store in a bucket, and its name for people.
pub(crate) fn open(
    bucket: &S3Destination,
    environment: &Lookup,
    config: &StoreConfig,
) -> Result<(Arc<dyn ObjectStore>, String), SettingRefused> {
    let files = ProfileFiles::of(bucket.profile.as_deref(), environment);
    // A file that cannot be read now says so again when keys are asked for.
    let profile = files.read().ok().flatten().unwrap_or_default();
    let place = place(bucket, environment, &profile)?;
    let certificates = certificates(bucket)?;
    let options = client_options(config, &certificates)?;
    let unusable = |error: object_store::Error| SettingRefused {
        setting: "destination",
        reason: super::error::innermost(&error),
    };
    let credentials =
        chain(bucket.profile.as_deref(), files, environment, &options).map_err(unusable)?;
    let plain = place
        .endpoint
        .as_ref()
        .is_some_and(|endpoint| endpoint.starts_with("http://"));
    let client = client(config, &certificates, !plain)?;
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(&bucket.bucket)
        .with_region(&place.region)
        .with_virtual_hosted_style_request(!place.path_style)
        .with_client_options(options.with_allow_http(plain))
        .with_credentials(credentials)
        .with_http_connector(AnswerConnector { client })
        .with_conditional_put(S3ConditionalPut::ETagMatch)
        .with_checksum_algorithm(Checksum::SHA256)
        // Not every store has the other way to delete.
        .with_disable_bulk_delete(true)
        .with_retry(RetryConfig {
            max_retries: 0,
            ..RetryConfig::default()
        });
    let mut name = format!("s3://{}", bucket.bucket);
    if let Some(endpoint) = &place.endpoint {
        name = format!("{name} at {endpoint}");
        builder = builder.with_endpoint(if place.path_style {
            endpoint.clone()
        } else {
            endpoint.replacen("://", &format!("://{}.", bucket.bucket), 1)
        });
    }
    let store = builder.build().map_err(unusable)?;
    Ok((Arc::new(store), name))
}

fn place(
    bucket: &S3Destination,
    environment: &Lookup,
    profile: &Profile,
) -> Result<Place, SettingRefused> {
    let plain = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c);
    if !(3..=255).contains(&bucket.bucket.len()) || !bucket.bucket.chars().all(plain) {
        return Err(refused(
            "destination.bucket",
            "a bucket's name has letters, digits, `.` and `-`",
        ));
    }
    let region = bucket
        .region
        .clone()
        .or_else(|| environment("AWS_REGION"))
        .or_else(|| environment("AWS_DEFAULT_REGION"))
        .or_else(|| profile.region.clone())
        .unwrap_or_else(|| "us-east-1".to_owned());
    if !region.chars().all(plain) || region.is_empty() {
        return Err(refused(
            "destination.region",
            "a region has letters, digits and `-`",
        ));
    }
    let endpoint = endpoint(bucket, environment, profile)?;
    // A certificate for `*.s3.….amazonaws.com` does not hold for a name with further dots.
    let path_style = bucket
        .path_style
        .unwrap_or_else(|| endpoint.is_some() || bucket.bucket.contains('.'));
    Ok(Place {
        region,
        endpoint,
        path_style,
    })
}

fn endpoint(
    bucket: &S3Destination,
    environment: &Lookup,
    profile: &Profile,
) -> Result<Option<String>, SettingRefused> {
    let ignored = environment("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS")
        .is_some_and(|value| value.eq_ignore_ascii_case("true"));
    let configured = || {
        environment("AWS_ENDPOINT_URL_S3")
            .or_else(|| environment("AWS_ENDPOINT_URL"))
            .or_else(|| profile.endpoint.clone())
            .filter(|_| !ignored)
    };
    let Some(endpoint) = bucket.endpoint.clone().or_else(configured) else {
        return Ok(None);
    };
    let host = endpoint
        .strip_prefix("https://")
        .or_else(|| endpoint.strip_prefix("http://"))
        .unwrap_or_default();
    let odd = |c: char| c.is_whitespace() || c.is_control() || "@?#".contains(c);
    if host.trim_end_matches('/').is_empty() || host.contains(odd) {
        return Err(refused(
            "destination.endpoint",
            "takes http://HOST:PORT or https://HOST:PORT, without user, `?` or `#`",
        ));
    }
    Ok(Some(endpoint.trim_end_matches('/').to_owned()))
}

/// What requests to the store are made with. Without a limit to the whole request, which depends on
/// its size and is ours.
fn client(
    config: &StoreConfig,
    certificates: &[u8],
    https_only: bool,
) -> Result<reqwest::Client, SettingRefused> {
    let trusted = reqwest::Certificate::from_pem_bundle(certificates).map_err(unusable_ca)?;
    reqwest::Client::builder()
        .user_agent(USER_AGENT)
        .connect_timeout(Duration::from_millis(config.connect_timeout_ms))
        .tls_certs_merge(trusted)
        .https_only(https_only)
        // An object is read as it is stored.
        .no_gzip()
        .no_brotli()
        .no_zstd()
        .no_deflate()
        .build()
        .map_err(unusable_ca)
}

/// The same for those who give credentials.
fn client_options(
    config: &StoreConfig,
    certificates: &[u8],
) -> Result<ClientOptions, SettingRefused> {
    let trusted = Certificate::from_pem_bundle(certificates).map_err(unusable_ca)?;
    let options = ClientOptions::new()
        .with_user_agent(USER_AGENT)
        .with_connect_timeout(Duration::from_millis(config.connect_timeout_ms))
        .with_timeout_disabled();
    Ok(trusted
        .into_iter()
        .fold(options, ClientOptions::with_root_certificate))
}

/// The PEM file to trust, or nothing.
fn certificates(bucket: &S3Destination) -> Result<Vec<u8>, SettingRefused> {
    let Some(path) = &bucket.ca_file else {
        return Ok(Vec::new());
    };
    let unreadable = |why: &dyn std::fmt::Display| SettingRefused {
        setting: "destination.ca_file",
        reason: format!("{}: {why}", path.display()),
    };
    let size = std::fs::metadata(path).map_err(|error| unreadable(&error))?;
    if size.len() > CA_BYTES_MAX {
        return Err(unreadable(&"is larger than 1 MiB"));
    }
    let pem = std::fs::read(path).map_err(|error| unreadable(&error))?;
    let certificates = Certificate::from_pem_bundle(&pem).map_err(|error| unreadable(&error))?;
    if certificates.is_empty() {
        return Err(unreadable(&"holds no PEM certificate"));
    }
    Ok(pem)
}

fn unusable_ca(error: impl std::fmt::Display) -> SettingRefused {
    SettingRefused {
        setting: "destination.ca_file",
        reason: error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn environment(variables: &[(&str, &str)]) -> Lookup {
        let variables: BTreeMap<String, String> = variables
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        Arc::new(move |name| variables.get(name).cloned())
    }

    fn bucket() -> S3Destination {
        S3Destination {
            bucket: "lake".to_owned(),
            ..S3Destination::default()
        }
    }

    #[test]
    fn the_region_comes_from_the_first_that_knows() {
        let profile = Profile {
            region: Some("of-profile".to_owned()),
            ..Profile::default()
        };
        let check =
            |set: Option<&str>, variables: &[(&str, &str)], profile: &Profile, expected: &str| {
                let bucket = S3Destination {
                    region: set.map(str::to_owned),
                    ..bucket()
                };
                let place = place(&bucket, &environment(variables), profile).unwrap();
                assert_eq!(place.region, expected);
            };
        let both = [("AWS_REGION", "one"), ("AWS_DEFAULT_REGION", "two")];
        check(Some("set"), &both, &profile, "set");
        check(None, &both, &profile, "one");
        check(None, &both[1..], &profile, "two");
        check(None, &[], &profile, "of-profile");
        check(None, &[], &Profile::default(), "us-east-1");
    }

    #[test]
    fn the_endpoint_comes_from_the_first_that_knows() {
        let check = |set: Option<&str>, variables: &[(&str, &str)], expected: Option<&str>| {
            let bucket = S3Destination {
                endpoint: set.map(str::to_owned),
                ..bucket()
            };
            let place = place(&bucket, &environment(variables), &Profile::default()).unwrap();
            assert_eq!(place.endpoint.as_deref(), expected);
            assert_eq!(place.path_style, expected.is_some());
        };
        let all = [
            ("AWS_ENDPOINT_URL_S3", "http://three:3"),
            ("AWS_ENDPOINT_URL", "http://any:1"),
        ];
        let ignored = [("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "true"), all[0]];
        check(Some("http://set:9/"), &all, Some("http://set:9"));
        check(None, &all, Some("http://three:3"));
        check(None, &all[1..], Some("http://any:1"));
        check(None, &[], None);
        check(None, &ignored, None);
        check(Some("http://set:9"), &ignored, Some("http://set:9"));
    }

    #[test]
    fn what_cannot_be_a_bucket_or_a_server_is_refused() {
        let check = |bucket: S3Destination, setting: &str| {
            let refused = open(&bucket, &environment(&[]), &StoreConfig::default()).unwrap_err();
            assert_eq!(refused.setting, setting, "{bucket:?}");
        };
        let named = |name: &str| S3Destination {
            bucket: name.to_owned(),
            ..bucket()
        };
        check(named(""), "destination.bucket");
        check(named("a/b/c"), "destination.bucket");
        check(named("a?b=c"), "destination.bucket");
        let at = |endpoint: &str| S3Destination {
            endpoint: Some(endpoint.to_owned()),
            ..bucket()
        };
        check(at("localhost:9000"), "destination.endpoint");
        check(at("http://"), "destination.endpoint");
        check(at("http://user:secret@host"), "destination.endpoint");
        check(at("ftp://host"), "destination.endpoint");
        let dir = tempfile::tempdir().unwrap();
        let trusting = |path: std::path::PathBuf| S3Destination {
            ca_file: Some(path),
            ..bucket()
        };
        check(trusting(dir.path().join("none")), "destination.ca_file");
        std::fs::write(dir.path().join("text"), "no certificate").unwrap();
        check(trusting(dir.path().join("text")), "destination.ca_file");
    }

    #[test]
    fn a_name_says_where_and_no_secret() {
        let keys = environment(&[
            ("AWS_ACCESS_KEY_ID", "AKIACANARY"),
            ("AWS_SECRET_ACCESS_KEY", "secretcanary"),
        ]);
        let config = StoreConfig::default();
        let (store, name) = open(&bucket(), &keys, &config).unwrap();
        assert_eq!(name, "s3://lake");
        let shown = format!("{store:?} {store}");
        assert!(!shown.contains("secretcanary"), "{shown}");
        let local = S3Destination {
            endpoint: Some("http://127.0.0.1:7070".to_owned()),
            ..bucket()
        };
        let (_, name) = open(&local, &keys, &config).unwrap();
        assert_eq!(name, "s3://lake at http://127.0.0.1:7070");
    }
}
