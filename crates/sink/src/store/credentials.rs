//! Who signs requests: the usual AWS chain.
//!
//! 1. A profile that the settings name: nothing else then.
//! 2. `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`.
//! 3. A role that the environment names: web identity, container.
//! 4. The profile that `AWS_PROFILE` names, or `default`.
//! 5. The role of the machine (instance metadata), unless `AWS_EC2_METADATA_DISABLED=true`.
//!
//! Roles are `object_store`'s, which renews what it gets from them. Files are looked at before each
//! request and read when they have changed, so that new keys count without a restart.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey, AwsCredential, AwsCredentialProvider};
use object_store::{ClientOptions, CredentialProvider, RetryConfig, StaticCredentialProvider};

use super::destinations::Lookup;
use super::profile::{Profile, ProfileFiles, Stamp};

/// Why there is nobody to sign.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CredentialError {
    /// The whole chain has none.
    #[error(
        "there are no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or write a profile, or give this machine a role ({detail})"
    )]
    None {
        /// What the last of the chain said.
        detail: String,
    },
    /// A role was named, and does not give any.
    #[error("the role in the environment gives no credentials: {detail}")]
    Role {
        /// What it said.
        detail: String,
    },
    /// The settings name a profile that no file has.
    #[error("there is no profile `{profile}`; write it, or set another")]
    NoProfile {
        /// Its name.
        profile: String,
    },
    /// A profile leads to credentials on a way that is not supported.
    #[error(
        "profile `{profile}` uses {way}, which is not supported here; give it aws_access_key_id and aws_secret_access_key"
    )]
    Elsewhere {
        /// Its name.
        profile: String,
        /// The setting that says so.
        way: &'static str,
    },
    /// One half of a pair is missing.
    #[error("{place} has only one of access key id and secret access key")]
    Half {
        /// Where: `the environment`, or the profile.
        place: String,
    },
    /// A file cannot be read.
    #[error("cannot read {}: {fault}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why not.
        fault: flumen_broker::IoFault,
    },
}

impl From<CredentialError> for object_store::Error {
    fn from(error: CredentialError) -> Self {
        Self::Generic {
            store: "credentials",
            source: Box::new(error),
        }
    }
}

/// The chain for one destination. `profile` is the one that the settings name.
pub(crate) fn chain(
    profile: Option<&str>,
    files: ProfileFiles,
    environment: &Lookup,
    options: &ClientOptions,
) -> Result<AwsCredentialProvider, object_store::Error> {
    if profile.is_some() {
        return Ok(Arc::new(Chain::new(files, After::Nothing)));
    }
    let pair = (
        environment("AWS_ACCESS_KEY_ID"),
        environment("AWS_SECRET_ACCESS_KEY"),
    );
    match pair {
        (Some(key_id), Some(secret_key)) => {
            return Ok(Arc::new(StaticCredentialProvider::new(AwsCredential {
                key_id,
                secret_key,
                token: environment("AWS_SESSION_TOKEN"),
            })));
        }
        (None, None) => {}
        _ => {
            let place = "the environment".to_owned();
            return Err(CredentialError::Half { place }.into());
        }
    }
    let named = [
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    ];
    if named.iter().any(|name| environment(name).is_some()) {
        let role = role(environment, options)?;
        return Ok(Arc::new(Role { role, named: true }));
    }
    let no_machine = environment("AWS_EC2_METADATA_DISABLED")
        .is_some_and(|value| value.eq_ignore_ascii_case("true"));
    let after = if no_machine {
        After::Disabled
    } else {
        let role = role(environment, options)?;
        After::Machine(Role { role, named: false })
    };
    Ok(Arc::new(Chain::new(files, after)))
}

/// The provider that `object_store` makes of the environment: it is built for a store that is
/// thrown away.
fn role(
    environment: &Lookup,
    options: &ClientOptions,
) -> Result<AwsCredentialProvider, object_store::Error> {
    use AmazonS3ConfigKey as Key;
    const VARIABLES: &[(&str, Key)] = &[
        ("AWS_WEB_IDENTITY_TOKEN_FILE", Key::WebIdentityTokenFile),
        ("AWS_ROLE_ARN", Key::RoleArn),
        ("AWS_ROLE_SESSION_NAME", Key::RoleSessionName),
        ("AWS_ENDPOINT_URL_STS", Key::StsEndpoint),
        ("AWS_REGION", Key::Region),
        (
            "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
            Key::ContainerCredentialsRelativeUri,
        ),
        (
            "AWS_CONTAINER_CREDENTIALS_FULL_URI",
            Key::ContainerCredentialsFullUri,
        ),
        (
            "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
            Key::ContainerAuthorizationTokenFile,
        ),
        ("AWS_METADATA_ENDPOINT", Key::MetadataEndpoint),
        ("AWS_EC2_METADATA_SERVICE_ENDPOINT", Key::MetadataEndpoint),
    ];
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name("unused")
        .with_client_options(options.clone())
        .with_retry(RetryConfig {
            max_retries: 0,
            ..RetryConfig::default()
        });
    for (name, key) in VARIABLES {
        if let Some(value) = environment(name) {
            builder = builder.with_config(*key, value);
        }
    }
    Ok(Arc::clone(builder.build()?.credentials()))
}

/// A role, with errors that say what to do.
#[derive(Debug)]
struct Role {
    role: AwsCredentialProvider,
    /// The environment names it; otherwise it is the machine's, and most have none.
    named: bool,
}

#[async_trait]
impl CredentialProvider for Role {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        let asked = self.role.get_credential().await;
        asked.map_err(|error| {
            let detail = super::error::innermost(&error);
            if self.named {
                CredentialError::Role { detail }.into()
            } else {
                CredentialError::None { detail }.into()
            }
        })
    }
}

/// A profile in files, then the machine's role.
#[derive(Debug)]
struct Chain {
    keys: Arc<ProfileKeys>,
    after: After,
}

/// What is asked when the profile has no keys.
#[derive(Debug)]
enum After {
    /// The settings name the profile: nobody.
    Nothing,
    /// The environment forbids to ask the machine.
    Disabled,
    /// The machine.
    Machine(Role),
}

impl Chain {
    fn new(files: ProfileFiles, after: After) -> Self {
        Self {
            keys: Arc::new(ProfileKeys {
                files,
                read: Mutex::new(None),
            }),
            after,
        }
    }
}

#[async_trait]
impl CredentialProvider for Chain {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        let keys = Arc::clone(&self.keys);
        let found = tokio::task::spawn_blocking(move || keys.now()).await??;
        if let Some(found) = found {
            return Ok(found);
        }
        match &self.after {
            After::Nothing => {
                let profile = self.keys.files.name.clone();
                Err(CredentialError::NoProfile { profile }.into())
            }
            After::Disabled => {
                let detail = "instance metadata is disabled".to_owned();
                Err(CredentialError::None { detail }.into())
            }
            After::Machine(role) => role.get_credential().await,
        }
    }
}

type Keys = Option<Arc<AwsCredential>>;

/// The keys of a profile, read again when a file has changed.
#[derive(Debug)]
struct ProfileKeys {
    files: ProfileFiles,
    read: Mutex<Option<(Stamp, Keys)>>,
}

impl ProfileKeys {
    fn now(&self) -> Result<Keys, CredentialError> {
        // Before the files are read: what changes meanwhile is seen the next time.
        let stamp = self.files.stamp();
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, keys)) = &*read
            && *of == stamp
        {
            return Ok(keys.clone());
        }
        let keys = match self.files.read()? {
            Some(profile) => self.keys_of(profile)?,
            None => None,
        };
        *read = Some((stamp, keys.clone()));
        Ok(keys)
    }

    fn keys_of(&self, profile: Profile) -> Result<Keys, CredentialError> {
        let name = || self.files.name.clone();
        match (profile.key_id, profile.secret_key, profile.elsewhere) {
            (Some(key_id), Some(secret_key), _) => Ok(Some(Arc::new(AwsCredential {
                key_id,
                secret_key,
                token: profile.token,
            }))),
            (None, None, None) => Ok(None),
            (None, None, Some(way)) => Err(CredentialError::Elsewhere {
                profile: name(),
                way,
            }),
            _ => Err(CredentialError::Half {
                place: format!("profile `{}`", name()),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use super::*;

    fn environment(variables: &[(&str, &str)]) -> Lookup {
        let variables: BTreeMap<String, String> = variables
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        Arc::new(move |name| variables.get(name).cloned())
    }

    fn provider(
        profile: Option<&str>,
        home: &Path,
        more: &[(&str, &str)],
    ) -> Result<AwsCredentialProvider, object_store::Error> {
        let home = home.to_str().unwrap();
        let mut variables = vec![("HOME", home), ("AWS_EC2_METADATA_DISABLED", "true")];
        variables.extend(more);
        let environment = environment(&variables);
        let files = ProfileFiles::of(profile, &environment);
        chain(profile, files, &environment, &ClientOptions::new())
    }

    /// A key id, or what is wrong.
    async fn asked(provider: &AwsCredentialProvider) -> Result<String, CredentialError> {
        match provider.get_credential().await {
            Ok(credential) => Ok(credential.key_id.clone()),
            Err(error) => Err(super::super::answer::source::<CredentialError>(&error)
                .unwrap()
                .clone()),
        }
    }

    fn write(home: &Path, text: &str) {
        std::fs::create_dir_all(home.join(".aws")).unwrap();
        std::fs::write(home.join(".aws/credentials"), text).unwrap();
    }

    #[tokio::test]
    async fn the_chain_is_asked_in_its_order() {
        let home = tempfile::tempdir().unwrap();
        let keys = [("AWS_ACCESS_KEY_ID", "E"), ("AWS_SECRET_ACCESS_KEY", "S")];
        let none = provider(None, home.path(), &[]).unwrap();
        assert!(matches!(
            asked(&none).await,
            Err(CredentialError::None { .. })
        ));
        write(
            home.path(),
            "[default]\naws_access_key_id=D\naws_secret_access_key=s\n\
             [other]\naws_access_key_id=O\naws_secret_access_key=s\n\
             [half]\naws_access_key_id=H\n[sso]\nsso_start_url=u\n",
        );
        // It was asked before there was a file, and finds it now.
        assert_eq!(asked(&none).await.unwrap(), "D");
        let from_environment = provider(None, home.path(), &keys).unwrap();
        assert_eq!(asked(&from_environment).await.unwrap(), "E");
        let named = provider(Some("other"), home.path(), &keys).unwrap();
        assert_eq!(asked(&named).await.unwrap(), "O");
        let told = provider(None, home.path(), &[("AWS_PROFILE", "other")]).unwrap();
        assert_eq!(asked(&told).await.unwrap(), "O");
        let missing = provider(Some("nobody"), home.path(), &keys).unwrap();
        assert!(matches!(
            asked(&missing).await,
            Err(CredentialError::NoProfile { .. })
        ));
        let half = provider(Some("half"), home.path(), &[]).unwrap();
        assert!(matches!(
            asked(&half).await,
            Err(CredentialError::Half { .. })
        ));
        let sso = provider(Some("sso"), home.path(), &[]).unwrap();
        let said = asked(&sso).await.unwrap_err().to_string();
        assert!(said.contains("sso_start_url"), "{said}");
        assert!(provider(None, home.path(), &keys[..1]).is_err());
    }

    #[tokio::test]
    async fn keys_that_change_in_the_file_count_at_once() {
        let home = tempfile::tempdir().unwrap();
        let profile =
            |key: &str| format!("[default]\naws_access_key_id={key}\naws_secret_access_key=s\n");
        write(home.path(), &profile("FIRST"));
        let provider = provider(None, home.path(), &[]).unwrap();
        assert_eq!(asked(&provider).await.unwrap(), "FIRST");
        write(home.path(), &profile("THESECOND"));
        assert_eq!(asked(&provider).await.unwrap(), "THESECOND");
    }

    /// Answers as the agent of a pod does: each time with other keys, the first of which are over
    /// soon.
    async fn agent(listener: tokio::net::TcpListener) {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        for number in 1.. {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                request.push(stream.read_u8().await.unwrap());
            }
            let request = String::from_utf8(request).unwrap().to_ascii_lowercase();
            assert!(request.contains("authorization: of the pod"), "{request}");
            let year = if number == 1 { 2020 } else { 2999 };
            let body = format!(
                "{{\"AccessKeyId\":\"KEY{number}\",\"SecretAccessKey\":\"s\",\"Token\":\"t\",\
                 \"Expiration\":\"{year}-01-01T00:00:00Z\"}}"
            );
            let answer = format!(
                "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                body.len()
            );
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    }

    #[tokio::test]
    async fn keys_of_a_role_are_renewed_when_they_run_out() {
        let home = tempfile::tempdir().unwrap();
        let token = home.path().join("token");
        std::fs::write(&token, "of the pod").unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri = format!("http://{}/keys", listener.local_addr().unwrap());
        // A profile does not count where the environment names a role.
        write(
            home.path(),
            "[default]\naws_access_key_id=D\naws_secret_access_key=s\n",
        );
        let variables = [
            ("AWS_CONTAINER_CREDENTIALS_FULL_URI", uri.as_str()),
            (
                "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
                token.to_str().unwrap(),
            ),
        ];
        let provider = provider(None, home.path(), &variables).unwrap();
        let agent = tokio::spawn(agent(listener));
        assert_eq!(asked(&provider).await.unwrap(), "KEY1");
        assert_eq!(asked(&provider).await.unwrap(), "KEY2");
        assert_eq!(asked(&provider).await.unwrap(), "KEY2");
        agent.abort();
    }

    #[tokio::test]
    async fn a_role_that_gives_nothing_says_so() {
        let home = tempfile::tempdir().unwrap();
        let missing = home.path().join("no token");
        let variables = [
            ("AWS_WEB_IDENTITY_TOKEN_FILE", missing.to_str().unwrap()),
            ("AWS_ROLE_ARN", "arn:aws:iam::1:role/r"),
        ];
        let provider = provider(None, home.path(), &variables).unwrap();
        let error = asked(&provider).await.unwrap_err();
        assert!(matches!(error, CredentialError::Role { .. }), "{error}");
    }
}
