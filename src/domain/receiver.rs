//! Where webhooks may be sent: whoever names a URL must not be able to have Reeve call what only
//! Reeve can reach.
//!
//! A URL is judged as it is written, in whatever way an address is spelt, and each address that its
//! name has is judged again before a connection to it is opened.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use url::{Host, Url};

const URL_AT_MOST: usize = 2048;
/// Metadata services that do not live at link-local addresses: of AWS, Alibaba, Oracle and Azure.
const METADATA: [IpAddr; 4] = [
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)),
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
];
/// Names of metadata services, wherever they lead.
const METADATA_NAMES: [&str; 3] = ["metadata.google.internal", "metadata.goog", "instance-data"];

/// Ranges beside the public ones that may be sent to: `REEVE_WEBHOOK_ALLOW_CIDRS`.
#[derive(Debug, Clone, Default)]
pub struct Allowed(Vec<IpNet>);

#[derive(Debug, thiserror::Error)]
#[error("`{0}` is no address range; write ranges as 10.0.0.0/8,fd00::/8")]
pub struct ParseAllowedError(String);

impl Allowed {
    /// Reads ranges with commas between them.
    pub fn parse(ranges: &str) -> Result<Self, ParseAllowedError> {
        let range =
            |text: &str| text.trim().parse().map_err(|_| ParseAllowedError(text.to_owned()));
        let ranges = ranges.split(',').filter(|r| !r.trim().is_empty()).map(range);
        Ok(Self(ranges.collect::<Result<_, _>>()?))
    }

    /// Reads a URL that somebody wants to be called, or says why it will not be.
    pub fn url(&self, text: &str) -> Result<Url, String> {
        if text.len() > URL_AT_MOST {
            return Err(format!("a URL has at most {URL_AT_MOST} characters"));
        }
        let url = Url::parse(text).map_err(|error| format!("this is no URL: {error}"))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err("a webhook is called by http or https".to_owned());
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err("a URL with a login is not taken; calls are signed instead".to_owned());
        }
        if url.fragment().is_some() {
            return Err("what follows # is never sent; leave it out".to_owned());
        }
        match url.host() {
            None => return Err("the URL names no host".to_owned()),
            Some(Host::Ipv4(ip)) => self.address(ip.into())?,
            Some(Host::Ipv6(ip)) => self.address(ip.into())?,
            Some(Host::Domain(name)) => {
                let name = name.trim_end_matches('.');
                if METADATA_NAMES.contains(&name) {
                    return Err(format!("{name} is a metadata service, which is never called"));
                }
                if name == "localhost" || name.ends_with(".localhost") {
                    self.address(Ipv4Addr::LOCALHOST.into())
                        .map_err(|why| format!("{name} is this machine: {why}"))?;
                }
            }
        }
        Ok(url)
    }

    /// Judges an address that is about to be connected to.
    pub fn address(&self, ip: IpAddr) -> Result<(), String> {
        let ip = within(ip.to_canonical());
        if let Some(what) = never(ip) {
            return Err(format!("{ip} is {what}, which is never called"));
        }
        match private(ip) {
            Some(what) if !self.0.iter().any(|range| range.contains(&ip)) => Err(format!(
                "{ip} is {what}, and REEVE_WEBHOOK_ALLOW_CIDRS has no range that contains it"
            )),
            Some(_) | None => Ok(()),
        }
    }
}

/// The IPv4 address that an IPv6 address leads to by way of a translator or a tunnel (NAT64,
/// RFC 6052; 6to4, RFC 3056; the old compatible form), or the address itself.
fn within(ip: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = ip else { return ip };
    let [a, b, c, d, e, f, g, h] = v6.segments();
    let v4 = |high: u16, low: u16| {
        let ([w, x], [y, z]) = (high.to_be_bytes(), low.to_be_bytes());
        IpAddr::V4(Ipv4Addr::new(w, x, y, z))
    };
    match [a, b, c, d, e, f] {
        [0x64, 0xff9b, 0, 0, 0, 0] => v4(g, h),
        // IPv4-translated (RFC 2765).
        [0, 0, 0, 0, 0xffff, 0] => v4(g, h),
        [0, 0, 0, 0, 0, 0] if g != 0 => v4(g, h),
        [0x2002, high, low, ..] => v4(high, low),
        _ => ip,
    }
}

fn never(ip: IpAddr) -> Option<&'static str> {
    if METADATA.contains(&ip) {
        return Some("a metadata service");
    }
    match ip {
        IpAddr::V4(v4) if v4.is_link_local() => {
            Some("link-local, where clouds keep the metadata of their machines")
        }
        IpAddr::V6(v6) if v6.is_unicast_link_local() => Some("link-local"),
        IpAddr::V4(v4) if v4.octets()[0] == 0 => Some("nobody's address"),
        IpAddr::V6(v6) if v6.is_unspecified() => Some("nobody's address"),
        IpAddr::V4(v4) if v4.octets()[0] >= 240 => Some("reserved"),
        _ if ip.is_multicast() => Some("an address of many"),
        // Teredo, and NAT64 with a prefix of a network's own: they lead where nobody can tell.
        IpAddr::V6(v6) if matches!(v6.segments(), [0x2001, 0, ..] | [0x64, 0xff9b, 1, ..]) => {
            Some("a tunnel")
        }
        IpAddr::V4(_) | IpAddr::V6(_) => None,
    }
}

fn private(ip: IpAddr) -> Option<&'static str> {
    match ip {
        _ if ip.is_loopback() => Some("this machine (loopback)"),
        IpAddr::V4(v4) => match v4.octets() {
            [100, 64..=127, ..] | [192, 0, 0, _] | [198, 18..=19, ..] => {
                Some("in a range for networks' own use")
            }
            _ => v4.is_private().then_some("in a private range"),
        },
        IpAddr::V6(v6) => {
            let site_local = v6.segments()[0] & 0xffc0 == 0xfec0;
            (v6.is_unique_local() || site_local).then_some("in a private range")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What somebody might write to reach what is not theirs, and a word of the reason.
    const HOSTILE: &[(&str, &str)] = &[
        ("http://169.254.169.254/latest/meta-data/", "link-local"),
        ("http://169.254.170.2/v2/credentials", "link-local"),
        ("http://[fd00:ec2::254]/", "metadata"),
        ("http://100.100.100.200/", "metadata"),
        ("http://192.0.0.192/", "metadata"),
        ("http://168.63.129.16/machine?comp=goalstate", "metadata"),
        ("http://metadata.google.internal/computeMetadata/v1/", "metadata"),
        ("http://METADATA.google.internal./", "metadata"),
        ("http://127.0.0.1/", "loopback"),
        ("http://127.1/", "loopback"),
        ("http://127.0.0.1./", "loopback"),
        ("http://2130706433/", "loopback"),
        ("http://0x7f000001/", "loopback"),
        ("http://0x7f.1/", "loopback"),
        ("http://0177.0.0.1/", "loopback"),
        ("http://017700000001/", "loopback"),
        ("http://%31%32%37.0.0.1/", "loopback"),
        ("http://１２７.0.0.1/", "loopback"),
        ("http://127。0。0。1/", "loopback"),
        ("http:\\\\127.0.0.1\\", "loopback"),
        ("http:127.0.0.1", "loopback"),
        ("http://2852039166/", "link-local"),
        ("http://0xa9fea9fe/", "link-local"),
        ("http://0251.0376.0251.0376/", "link-local"),
        ("http://[::1]/", "loopback"),
        ("http://[0:0:0:0:0:0:0:1]/", "loopback"),
        ("http://[::ffff:127.0.0.1]/", "loopback"),
        ("http://[::ffff:a9fe:a9fe]/", "link-local"),
        ("http://[::127.0.0.1]/", "loopback"),
        ("http://[64:ff9b::a9fe:a9fe]/", "link-local"),
        ("http://[64:ff9b::7f00:1]/", "loopback"),
        ("http://[::ffff:0:127.0.0.1]/", "loopback"),
        ("http://[64:ff9b:1::7f00:1]/", "tunnel"),
        ("http://[2002:7f00:1::]/", "loopback"),
        ("http://[2001::1]/", "tunnel"),
        ("http://[fe80::1]/", "link-local"),
        ("http://[fc00::1]/", "private"),
        ("http://[fec0::1]/", "private"),
        ("http://[ff02::1]/", "many"),
        ("http://[::]/", "nobody"),
        ("http://0.0.0.0/", "nobody"),
        ("http://0/", "nobody"),
        ("http://10.0.0.1/", "private"),
        ("http://172.16.0.1/", "private"),
        ("http://192.168.1.1/", "private"),
        ("http://100.64.0.1/", "own use"),
        ("http://198.18.0.1/", "own use"),
        ("http://224.0.0.1/", "many"),
        ("http://255.255.255.255/", "reserved"),
        ("http://240.0.0.1/", "reserved"),
        ("http://localhost/", "loopback"),
        ("http://LOCALHOST./", "loopback"),
        ("http://a.localhost:80/", "loopback"),
        ("http://public.example@127.0.0.1/", "login"),
        ("http://user:pass@public.example/", "login"),
        ("http://public.example/#fragment", "#"),
        ("file:///etc/passwd", "http"),
        ("gopher://127.0.0.1:6379/_FLUSHALL", "http"),
        ("ftp://public.example/", "http"),
        ("javascript:alert(1)", "http"),
        ("http://", "no URL"),
        ("//public.example/", "no URL"),
        ("http://[::1", "no URL"),
        ("http://256.256.256.256/", "no URL"),
        ("http://public.example:99999/", "no URL"),
        ("", "no URL"),
    ];

    #[test]
    fn hostile_urls_are_refused_each_with_its_reason() {
        let none = Allowed::default();
        for (url, word) in HOSTILE {
            let why = none.url(url).expect_err(url);
            assert!(why.contains(word), "{url}: {why}");
        }
        assert!(none.url(&format!("https://a.example/{}", "a".repeat(URL_AT_MOST))).is_err());
    }

    #[test]
    fn public_ones_are_taken() {
        let none = Allowed::default();
        for url in [
            "https://hooks.example.com/reeve?key=1",
            "http://93.184.216.34:8080/",
            "https://[2606:4700::1111]/",
            "https://[64:ff9b::5db8:d822]/",
            "https://[::ffff:93.184.216.34]/",
            "https://bücher.example/",
        ] {
            assert!(none.url(url).is_ok(), "{url}: {:?}", none.url(url));
        }
    }

    #[test]
    fn ranges_open_what_is_private_and_never_what_is_link_local() {
        let some = Allowed::parse("127.0.0.0/8, 10.1.0.0/16,fd00::/8").unwrap();
        for url in [
            "http://127.0.0.1/",
            "http://0x7f.1/",
            "http://[::ffff:127.0.0.1]/",
            "http://localhost:8080/",
            "http://10.1.2.3/",
            "http://[fd12::1]/",
        ] {
            assert!(some.url(url).is_ok(), "{url}: {:?}", some.url(url));
        }
        for url in ["http://10.2.0.1/", "http://[::1]/", "http://[fd00:ec2::254]/"] {
            assert!(some.url(url).is_err(), "{url}");
        }
        let all = Allowed::parse("0.0.0.0/0,::/0").unwrap();
        assert!(all.url("http://192.168.1.1/").is_ok());
        for url in ["http://169.254.169.254/", "http://[fe80::1]/", "http://0.0.0.0/"] {
            assert!(all.url(url).is_err(), "{url}");
        }
        assert!(Allowed::parse("10.0.0.0").is_err());
    }
}
