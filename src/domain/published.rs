//! What Sentinels publish: on data nodes who they are, and at themselves what happens to whom.
//!
//! Messages get lost. So they are a reason to look, and nothing is believed because of them.

use super::node::Address;

/// Where Sentinels announce themselves, on every data node that they watch, each two seconds.
pub const HELLO: &str = "__sentinel__:hello";

/// Where they tell of what may change who is primary, or what could be agreed on.
pub const NEWS: [&str; 10] = [
    "+sdown",
    "-sdown",
    "+odown",
    "-odown",
    "+promoted-slave",
    "+switch-master",
    "+failover-end",
    "+convert-to-slave",
    "+reboot",
    "+tilt",
];

/// Where the Sentinel is that announces itself by this message.
#[must_use]
pub fn announced(hello: &str) -> Option<Address> {
    let mut fields = hello.splitn(8, ',');
    let (ip, port, id) = (fields.next()?, fields.next()?, fields.next()?);
    // An epoch, and whom it watches: name, address, epoch.
    let whole = id.len() == 40 && fields.count() == 5;
    let address = if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") };
    whole.then(|| address.parse().ok()).flatten()
}

/// Whether a message is about the deployment of this name, or about all.
#[must_use]
pub fn concerns(name: &str, channel: &str, message: &str) -> bool {
    let words: Vec<&str> = message.split(' ').collect();
    // `name ip port ip port`; `master name ip port`; `type name ip port @ master ip port`.
    match (channel, words.as_slice()) {
        ("+tilt", _) => true,
        ("+switch-master", [about, ..])
        | (_, [_, _, _, _, "@", about, ..] | ["master", about, ..]) => *about == name,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From Redis 7.0.15.
    const HELLO_SAID: &str =
        "127.0.0.1,21003,97aa0000000000000000000000000000000000aa,4,m,127.0.0.1,21000,4";

    #[test]
    fn a_sentinel_says_where_it_is() {
        assert_eq!(announced(HELLO_SAID), "127.0.0.1:21003".parse().ok());
        assert_eq!(
            announced(&HELLO_SAID.replacen("127.0.0.1", "::1", 1)),
            "[::1]:21003".parse().ok()
        );
        for odd in ["", "127.0.0.1,21003", "a,b,c,d,e,f,g,h", &HELLO_SAID.replacen("21003", "x", 1)]
        {
            assert_eq!(announced(odd), None, "{odd}");
        }
    }

    #[test]
    fn news_name_their_deployment() {
        for (channel, message) in [
            ("+switch-master", "m 127.0.0.1 21000 127.0.0.1 21001"),
            ("+odown", "master m 127.0.0.1 21000 #quorum 2/2"),
            ("+sdown", "slave 127.0.0.1:21001 127.0.0.1 21001 @ m 127.0.0.1 21000"),
            ("-sdown", "sentinel 97aa 127.0.0.1 21003 @ m 127.0.0.1 21000"),
        ] {
            assert!(concerns("m", channel, message), "{message}");
            assert!(!concerns("other", channel, message), "{message}");
        }
        assert!(concerns("m", "+tilt", "#tilt mode entered"));
        assert!(!concerns("m", "+reboot", ""));
    }
}
