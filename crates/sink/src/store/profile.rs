//! Profiles of AWS's shared credentials and config files, as far as a server needs them: keys,
//! region, endpoint. What makes keys by running programs or by asking a person is named, and refused.
//!
//! Format: <https://docs.aws.amazon.com/sdkref/latest/guide/file-format.html>.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::credentials::CredentialError;
use super::destinations::Lookup;

/// Bytes of one of these files at most.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Ways to credentials that a profile may name and that are not taken here, by the setting they begin with.
const ELSEWHERE: &[&str] = &[
    "credential_process",
    "sso_session",
    "sso_start_url",
    "role_arn",
    "login_session",
];

/// Where profiles stand, and which of them counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ProfileFiles {
    /// The credentials file.
    pub(crate) credentials: Option<PathBuf>,
    /// The config file.
    pub(crate) config: Option<PathBuf>,
    /// The profile's name.
    pub(crate) name: String,
}

/// What a profile says.
#[derive(Clone, PartialEq, Eq, Default)]
pub(crate) struct Profile {
    /// `region`.
    pub(crate) region: Option<String>,
    /// `endpoint_url`.
    pub(crate) endpoint: Option<String>,
    /// `aws_access_key_id`.
    pub(crate) key_id: Option<String>,
    /// `aws_secret_access_key`.
    pub(crate) secret_key: Option<String>,
    /// `aws_session_token`.
    pub(crate) token: Option<String>,
    /// A way to credentials that is not taken here.
    pub(crate) elsewhere: Option<&'static str>,
}

/// Tells whether files have changed since: size and time of each.
pub(crate) type Stamp = [Option<(u64, Option<SystemTime>)>; 2];

impl ProfileFiles {
    /// As the environment says; `name` is the setting, which comes before `AWS_PROFILE`.
    pub(crate) fn of(name: Option<&str>, environment: &Lookup) -> Self {
        let home = environment("HOME").map(PathBuf::from);
        let file = |variable: &str, below_home: &str| {
            let told = environment(variable).map(PathBuf::from);
            told.or_else(|| home.as_ref().map(|home| home.join(below_home)))
        };
        Self {
            credentials: file("AWS_SHARED_CREDENTIALS_FILE", ".aws/credentials"),
            config: file("AWS_CONFIG_FILE", ".aws/config"),
            name: name
                .map(str::to_owned)
                .or_else(|| environment("AWS_PROFILE"))
                .unwrap_or_else(|| "default".to_owned()),
        }
    }

    /// Changes when one of the files does.
    pub(crate) fn stamp(&self) -> Stamp {
        [&self.credentials, &self.config].map(|path| {
            let metadata = std::fs::metadata(path.as_ref()?).ok()?;
            Some((metadata.len(), metadata.modified().ok()))
        })
    }

    /// The profile, if one of the files has it. Reads files.
    pub(crate) fn read(&self) -> Result<Option<Profile>, CredentialError> {
        let of_config = if self.name == "default" {
            "default".to_owned()
        } else {
            format!("profile {}", self.name)
        };
        let mut settings = section(self.config.as_deref(), &of_config)?;
        let keys = section(self.credentials.as_deref(), &self.name)?;
        if settings.is_none() && keys.is_none() {
            return Ok(None);
        }
        // Where both say something, the credentials file counts.
        let mut all = settings.take().unwrap_or_default();
        all.extend(keys.unwrap_or_default());
        let elsewhere = ELSEWHERE.iter().find(|name| all.contains_key(**name));
        Ok(Some(Profile {
            region: all.remove("region"),
            endpoint: all.remove("endpoint_url"),
            key_id: all.remove("aws_access_key_id"),
            secret_key: all.remove("aws_secret_access_key"),
            token: all.remove("aws_session_token"),
            elsewhere: elsewhere.copied(),
        }))
    }
}

fn section(
    path: Option<&Path>,
    name: &str,
) -> Result<Option<BTreeMap<String, String>>, CredentialError> {
    let Some(path) = path else { return Ok(None) };
    let failed = |error: &std::io::Error| CredentialError::File {
        path: path.to_owned(),
        fault: flumen_broker::IoFault::from(error),
    };
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(&error)),
    };
    let mut text = String::new();
    file.take(FILE_BYTES_MAX)
        .read_to_string(&mut text)
        .map_err(|error| failed(&error))?;
    Ok(section_of(&text, name))
}

/// The settings of one section; of a setting that stands twice, the last. Lines that begin with a
/// space go on with a nested setting (`s3 =`), and none of those is wanted.
fn section_of(text: &str, name: &str) -> Option<BTreeMap<String, String>> {
    let mut found: Option<BTreeMap<String, String>> = None;
    let mut inside = false;
    for line in text.lines() {
        if line.trim().is_empty() || line.starts_with(['#', ';', ' ', '\t']) {
            continue;
        }
        if let Some(rest) = line.strip_prefix('[') {
            let title = rest.split(']').next().unwrap_or_default();
            inside = title.split_whitespace().eq(name.split_whitespace());
            if inside {
                found.get_or_insert_default();
            }
        } else if inside && let Some((setting, value)) = line.split_once('=') {
            let value = value.split(" #").next().unwrap_or_default().trim();
            if let Some(settings) = &mut found
                && !value.is_empty()
            {
                settings.insert(setting.trim().to_ascii_lowercase(), value.to_owned());
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(dir: &Path, name: &str) -> ProfileFiles {
        ProfileFiles {
            credentials: Some(dir.join("credentials")),
            config: Some(dir.join("config")),
            name: name.to_owned(),
        }
    }

    #[test]
    fn a_profile_is_put_together_from_both_files() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(
            dir.path().join("credentials"),
            "# of nobody\n[default]\naws_access_key_id = D\naws_secret_access_key=DS\n\n\
             [ lake ]\naws_access_key_id=L # the lake\naws_secret_access_key=a=b+/c\nAWS_SESSION_TOKEN = T\n",
        )
        .unwrap();
        std::fs::write(
            dir.path().join("config"),
            "[default]\nregion = eu-west-1\ns3 =\n  region = nested\n\n\
             [profile lake]\nregion=eu-central-1\nendpoint_url = http://h:1\naws_access_key_id=older\n\
             [profile shy]\nsso_session = s\n[sso-session s]\nregion=x\n",
        )
        .unwrap();
        let default = files(dir.path(), "default").read().unwrap().unwrap();
        assert_eq!(default.region.as_deref(), Some("eu-west-1"));
        assert_eq!(default.key_id.as_deref(), Some("D"));
        assert_eq!(default.secret_key.as_deref(), Some("DS"));
        let lake = files(dir.path(), "lake").read().unwrap().unwrap();
        let expected = Profile {
            region: Some("eu-central-1".to_owned()),
            endpoint: Some("http://h:1".to_owned()),
            key_id: Some("L".to_owned()),
            secret_key: Some("a=b+/c".to_owned()),
            token: Some("T".to_owned()),
            elsewhere: None,
        };
        assert!(lake == expected);
        let shy = files(dir.path(), "shy").read().unwrap().unwrap();
        assert_eq!(shy.elsewhere, Some("sso_session"));
        assert!(files(dir.path(), "nobody").read().unwrap().is_none());
    }

    #[test]
    fn missing_files_are_no_error_and_broken_ones_are() {
        let dir = tempfile::tempdir().unwrap();
        assert!(files(dir.path(), "default").read().unwrap().is_none());
        std::fs::write(dir.path().join("config"), [0xff, 0xfe]).unwrap();
        assert!(matches!(
            files(dir.path(), "default").read(),
            Err(CredentialError::File { .. })
        ));
    }

    #[test]
    fn the_environment_says_where_and_which() {
        let of = |name: Option<&str>, variables: &[(&str, &str)]| {
            let variables: BTreeMap<String, String> = variables
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect();
            let lookup: Lookup = std::sync::Arc::new(move |name| variables.get(name).cloned());
            ProfileFiles::of(name, &lookup)
        };
        let plain = of(None, &[("HOME", "/h")]);
        assert_eq!(plain.name, "default");
        assert_eq!(plain.credentials, Some("/h/.aws/credentials".into()));
        assert_eq!(plain.config, Some("/h/.aws/config".into()));
        let told = of(None, &[("AWS_PROFILE", "p"), ("AWS_CONFIG_FILE", "/c")]);
        assert_eq!((told.name.as_str(), told.config), ("p", Some("/c".into())));
        assert_eq!(told.credentials, None);
        assert_eq!(of(Some("set"), &[("AWS_PROFILE", "p")]).name, "set");
    }
}
