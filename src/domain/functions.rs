//! Libraries of functions (Redis 7.0 and later). A primary hands them to its replicas, but nobody to
//! other primaries: they differ where a client has loaded one on some of them only.

use std::collections::{BTreeMap, BTreeSet};

use sha2::{Digest, Sha256};

use super::node::Address;
use super::observation::hex;
use super::placement::Warning;

/// By name, a digest of the code.
pub type Libraries = BTreeMap<String, String>;

/// What is compared of a library's code.
#[must_use]
pub fn digest(code: &[u8]) -> String {
    hex(&Sha256::digest(code)[..16])
}

/// What several nodes have between them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Compared {
    /// Those that all of them have, and alike.
    pub common: Libraries,
    /// The others by name, with whoever has them, and as what.
    pub disputed: BTreeMap<String, BTreeMap<Address, String>>,
}

#[must_use]
pub fn compare(nodes: &BTreeMap<Address, Libraries>) -> Compared {
    let mut compared = Compared::default();
    let names: BTreeSet<&String> = nodes.values().flat_map(BTreeMap::keys).collect();
    for name in names {
        let had = nodes.iter().filter_map(|(a, all)| Some((a.clone(), all.get(name)?.clone())));
        let had: BTreeMap<Address, String> = had.collect();
        let mut kinds: BTreeSet<&String> = had.values().collect();
        match kinds.pop_first() {
            Some(one) if kinds.is_empty() && had.len() == nodes.len() => {
                compared.common.insert(name.clone(), one.clone());
            }
            Some(_) | None => {
                compared.disputed.insert(name.clone(), had);
            }
        }
    }
    compared
}

/// What to know of libraries that primaries do not have alike, if there are some.
#[must_use]
pub fn drift(disputed: &BTreeMap<String, BTreeMap<Address, String>>) -> Option<Warning> {
    let owner = |(node, digest): (&Address, &String)| format!("{node} with code {digest:.8}");
    let library = |(name, had): (&String, &BTreeMap<Address, String>)| {
        format!("{name} (on {})", had.iter().map(owner).collect::<Vec<_>>().join(", "))
    };
    let all: Vec<String> = disputed.iter().map(library).collect();
    (!all.is_empty()).then(|| Warning {
        code: "functions_differ".to_owned(),
        message: format!(
            "not all primaries that serve have these function libraries alike, so that a new primary does not get them: {}; load each on all of them with FUNCTION LOAD REPLACE",
            all.join("; ")
        ),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn nodes(codes: &[[u8; 3]]) -> BTreeMap<Address, Libraries> {
        let libraries = |codes: &[u8; 3]| {
            let some = ["a", "b", "c"].into_iter().zip(codes).filter(|(_, code)| **code > 0);
            some.map(|(name, code)| (name.to_owned(), digest(&[*code]))).collect()
        };
        let address = |i| format!("127.0.0.1:{}", 7001 + i).parse().unwrap();
        codes.iter().enumerate().map(|(i, codes)| (address(i), libraries(codes))).collect()
    }

    proptest! {
        #[test]
        fn each_library_is_common_or_disputed(
            codes in prop::collection::vec(prop::array::uniform3(0u8..3), 1..5),
        ) {
            let nodes = nodes(&codes);
            let Compared { common, disputed } = compare(&nodes);
            for (name, digest) in &common {
                prop_assert!(nodes.values().all(|all| all.get(name) == Some(digest)));
            }
            for (name, had) in &disputed {
                prop_assert!(!common.contains_key(name));
                let first = nodes.values().next().and_then(|all| all.get(name));
                let alike = nodes.values().all(|all| all.get(name) == first);
                prop_assert!(!alike);
                for (node, all) in &nodes {
                    prop_assert_eq!(had.get(node), all.get(name));
                }
            }
            let names: BTreeSet<_> = nodes.values().flat_map(BTreeMap::keys).collect();
            prop_assert_eq!(names.len(), common.len() + disputed.len());
        }
    }

    #[test]
    fn whoever_has_a_disputed_library_is_named() {
        let compared = compare(&nodes(&[[1, 0, 0], [2, 0, 0], [0, 0, 0]]));
        let told = drift(&compared.disputed).unwrap().message;
        let named = ["a (on 127.0.0.1:7001 with code ", ", 127.0.0.1:7002 with code "];
        assert!(named.iter().all(|word| told.contains(word)) && !told.contains("7003"), "{told}");
        assert_eq!(drift(&BTreeMap::new()), None);
    }
}
