//! How a mount is asked for, and the text after `-o`. Pure.

use crate::fuse::MountOptions;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Session timeout that mounts ask for by default.
pub const SESSION_TIMEOUT_DEFAULT: Duration =
    Duration::from_millis(protocol::meta::SESSION_TIMEOUT_MS_DEFAULT as u64);
/// A mount is given up if no metadata server leads within this time.
pub const START_PATIENCE: Duration = Duration::from_secs(30);

/// Everything that a mount needs to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountConfig {
    /// Addresses of metadata servers.
    pub metadata: Vec<SocketAddr>,
    /// Directory with `ca.pem`, `cert.pem` and `key.pem`.
    pub identity: PathBuf,
    /// Where to mount.
    pub mountpoint: PathBuf,
    /// The cluster's directory that becomes the root of the mount: `/`, or an absolute path.
    pub subtree: String,
    /// Wanted session timeout.
    pub session_timeout: Duration,
    /// What the kernel is told.
    pub options: MountOptions,
}

/// An option that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// No such option.
    #[error(
        "the mount option '{0}' is not known; known are ro, rw, timeout=SECONDS, session_timeout=SECONDS, \
         subtree=/PATH, read_ahead=KIB, allow_other, noallow_other, suid, nosuid, dev, nodev, exec, noexec"
    )]
    Unknown(String),
    /// A value that makes no sense.
    #[error("the mount option '{option}' needs {wanted}")]
    Value {
        /// As given.
        option: String,
        /// What it takes.
        wanted: &'static str,
    },
}

impl MountConfig {
    /// The defaults for a cluster, an identity and a mountpoint.
    pub fn new(metadata: Vec<SocketAddr>, identity: PathBuf, mountpoint: PathBuf) -> Self {
        Self {
            metadata,
            identity,
            mountpoint,
            subtree: "/".to_owned(),
            session_timeout: SESSION_TIMEOUT_DEFAULT,
            options: MountOptions::default(),
        }
    }

    /// Applies the text after one `-o`: options separated by commas, later ones win.
    ///
    /// # Errors
    /// The first option that is not known or has a wrong value.
    pub fn apply(&mut self, text: &str) -> Result<(), OptionError> {
        text.split(',').filter(|option| !option.is_empty()).try_for_each(|option| self.apply_one(option))
    }

    fn apply_one(&mut self, option: &str) -> Result<(), OptionError> {
        let (name, value) = match option.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (option, None),
        };
        let options = &mut self.options;
        match (name, value) {
            ("ro", None) => options.read_only = true,
            ("rw", None) => options.read_only = false,
            ("allow_other", None) => options.allow_other = true,
            ("noallow_other", None) => options.allow_other = false,
            ("suid", None) => options.no_suid = false,
            ("nosuid", None) => options.no_suid = true,
            ("dev", None) => options.no_dev = false,
            ("nodev", None) => options.no_dev = true,
            ("exec", None) => options.no_exec = false,
            ("noexec", None) => options.no_exec = true,
            ("timeout", value) => {
                options.request_timeout = match seconds(option, value, 0..=86_400)? {
                    Duration::ZERO => None,
                    timeout => Some(timeout),
                };
            }
            ("session_timeout", value) => self.session_timeout = seconds(option, value, 1..=300)?,
            ("read_ahead", value) => {
                options.read_ahead_kib = value.and_then(|value| value.parse().ok()).ok_or_else(|| {
                    OptionError::Value { option: option.to_owned(), wanted: "a number of KiB" }
                })?;
            }
            ("subtree", Some(path)) if path.starts_with('/') => self.subtree = path.to_owned(),
            ("subtree", _) => {
                let wanted = "an absolute path in the cluster";
                return Err(OptionError::Value { option: option.to_owned(), wanted });
            }
            // For mount(8), fstab and systemd; they mean nothing here.
            ("defaults" | "_netdev" | "nofail" | "auto" | "noauto" | "user" | "nouser" | "users", None)
            | ("relatime" | "noatime" | "nodiratime" | "strictatime" | "async", None) => {}
            (name, _) if name.starts_with("x-") => {}
            _ => return Err(OptionError::Unknown(option.to_owned())),
        }
        Ok(())
    }
}

fn seconds(
    option: &str,
    value: Option<&str>,
    allowed: std::ops::RangeInclusive<u64>,
) -> Result<Duration, OptionError> {
    let wanted = if *allowed.start() == 0 {
        "a number of seconds from 0 (no timeout) to 86400"
    } else {
        "a number of seconds from 1 to 300"
    };
    let value = value.and_then(|value| value.parse().ok()).filter(|value| allowed.contains(value));
    value.map(Duration::from_secs).ok_or_else(|| OptionError::Value { option: option.to_owned(), wanted })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> MountConfig {
        MountConfig::new(vec![], PathBuf::from("tls"), PathBuf::from("/mnt"))
    }

    #[test]
    fn options_are_applied_in_order() {
        let mut mount = config();
        mount.apply("ro,timeout=7,nosuid,_netdev,x-systemd.automount,,rw,subtree=/home").expect("all known");
        assert!(!mount.options.read_only && mount.options.no_suid);
        assert_eq!(mount.options.request_timeout, Some(Duration::from_secs(7)));
        assert_eq!(mount.subtree, "/home");
        mount.apply("timeout=0").expect("known");
        assert_eq!(mount.options.request_timeout, None);
    }

    #[test]
    fn wrong_options_are_refused_with_a_sentence() {
        for wrong in ["speed=11", "timeout", "timeout=soon", "session_timeout=0", "subtree=home", "ro=1"] {
            let error = config().apply(wrong).expect_err(wrong).to_string();
            assert!(error.contains(wrong), "{error}");
        }
    }
}
