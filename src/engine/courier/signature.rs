//! Signing as Standard Webhooks has it: HMAC-SHA256 over `id.timestamp.body`, in base64.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use chrono::{DateTime, Utc};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

const PREFIX: &str = "whsec_";

/// A new secret; `None` if the machine gives no random numbers.
#[must_use]
pub fn new_secret() -> Option<String> {
    let mut bytes = [0u8; 32];
    getrandom::fill(&mut bytes).ok()?;
    Some(format!("{PREFIX}{}", STANDARD.encode(bytes)))
}

/// The value of `webhook-signature`: one for each secret, so that a receiver that knows any of them
/// can tell who wrote.
#[must_use]
pub fn sign(secrets: &[String], id: &str, at: DateTime<Utc>, body: &str) -> String {
    let content = format!("{id}.{}.{body}", at.timestamp());
    let signatures: Vec<String> =
        secrets.iter().filter_map(|secret| one(secret, content.as_bytes())).collect();
    signatures.join(" ")
}

fn one(secret: &str, content: &[u8]) -> Option<String> {
    let key = STANDARD.decode(secret.strip_prefix(PREFIX)?).ok()?;
    let mut mac = Hmac::<Sha256>::new_from_slice(&key).ok()?;
    mac.update(content);
    Some(format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_signs_as_the_specification_does() {
        // From the reference libraries' tests.
        let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".to_owned();
        let at = DateTime::from_timestamp(1_614_265_330, 0).unwrap();
        let body = r#"{"test": 2432232314}"#;
        let signed = sign(std::slice::from_ref(&secret), "msg_p5jXN8AQM9LWM0D4loKWxJek", at, body);
        assert_eq!(signed, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
        let other = new_secret().unwrap();
        let both = sign(&[other, secret], "msg_p5jXN8AQM9LWM0D4loKWxJek", at, body);
        assert_eq!(both.split(' ').count(), 2);
        assert!(both.ends_with(&signed));
    }
}
