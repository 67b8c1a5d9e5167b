//! Which slot a key has, and who serves it.

use axum::Json;
use axum::extract::{RawQuery, State};
use serde::Serialize;
use utoipa::ToSchema;

use crate::domain::id::ShardId;
use crate::domain::slot::{hash_tag, key_slot};
use crate::http::App;
use crate::http::auth::Viewer;
use crate::http::error::ApiError;
use crate::store::topologies::TopologyFilter;

const MAX_KEYS: usize = 1000;

#[derive(Debug, Serialize, ToSchema)]
pub struct KeySlots {
    keys: Vec<KeySlot>,
    /// Whether one command may name all of these keys.
    same_slot: bool,
    /// What to do where it may not.
    hint: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct KeySlot {
    key: String,
    slot: u16,
    /// The part of the key that decides its slot, where it is not the whole key.
    hash_tag: Option<String>,
    /// What was hashed, and why.
    why: String,
    /// The shards that serve the slot, one for each cluster.
    owner: Vec<SlotOwner>,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct SlotOwner {
    topology: String,
    shard: ShardId,
}

/// The slot of each key: CRC16 of its hash tag, or of the whole key, modulo 16384.
#[utoipa::path(get, path = "/v1/keyslot", operation_id = "get_keyslot", tag = "knowledge",
    params(("key" = Vec<String>, Query, description = "A key; may be repeated.", explode = true, min_items = 1, max_items = 1000)),
    responses((status = 200, description = "Slots.", body = KeySlots)))]
pub async fn keyslot(
    State(app): State<App>,
    Viewer(caller): Viewer,
    RawQuery(query): RawQuery,
) -> Result<Json<KeySlots>, ApiError> {
    let mut keys = Vec::new();
    for (name, value) in form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
        if name != "key" {
            return Err(ApiError::new(
                "invalid_parameter",
                format!("`{name}` is no parameter here; give key=…, once for each key"),
            ));
        }
        keys.push(value.into_owned());
    }
    if keys.is_empty() || keys.len() > MAX_KEYS {
        return Err(ApiError::new(
            "invalid_parameter",
            format!("give key=… once for each of 1 to {MAX_KEYS} keys"),
        ));
    }
    let visible = caller.visible(&app.engine).await?;
    let filter = TopologyFilter { visible, ..TopologyFilter::default() };
    let topologies = app.engine.store.topologies(&filter, i64::MAX).await?;
    let owners = |slot: u16| {
        let of = |t: &crate::store::topologies::StoredTopology| {
            let shards = t.wanted.layout.shards();
            let shard = shards.iter().find(|(_, slots)| slots.contains(slot))?;
            Some(SlotOwner { topology: t.wanted.name.clone(), shard: shard.0.id })
        };
        topologies.iter().filter_map(of).collect()
    };
    let keys: Vec<KeySlot> = keys
        .into_iter()
        .map(|key| {
            let slot = key_slot(key.as_bytes());
            let tag = hash_tag(key.as_bytes()).map(|t| String::from_utf8_lossy(t).into_owned());
            let why = why(&key, tag.as_deref());
            KeySlot { slot, hash_tag: tag, why, owner: owners(slot), key }
        })
        .collect();
    let same_slot = keys.windows(2).all(|w| w[0].slot == w[1].slot);
    let hint = (!same_slot).then(|| {
        "these keys lie in different slots, so one command, script or transaction that names them all fails with CROSSSLOT (/errors/E504), also where one node serves them all; give them a common hash tag, such as {user:123}:profile and {user:123}:sessions".to_owned()
    });
    Ok(Json(KeySlots { keys, same_slot, hint }))
}

fn why(key: &str, tag: Option<&str>) -> String {
    let open = key.find('{');
    let closed = open.and_then(|at| key[at..].find('}'));
    match (tag, open, closed) {
        (Some(tag), ..) => format!(
            "`{tag}` is hashed, since it stands between the first {{ and the next }}: every key with this tag is in the same slot"
        ),
        (None, Some(_), Some(_)) => {
            "the whole key is hashed: {} is empty, and so no hash tag".to_owned()
        }
        (None, Some(_), None) => {
            "the whole key is hashed: no } follows the first {, so there is no hash tag".to_owned()
        }
        (None, None, _) => "the whole key is hashed: it has no hash tag".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_hashed_is_told() {
        let told = |key: &str| {
            let tag = hash_tag(key.as_bytes()).map(|t| String::from_utf8_lossy(t).into_owned());
            why(key, tag.as_deref())
        };
        assert!(told("{user:123}:cart").starts_with("`user:123` is hashed"));
        assert!(told("foo{}{bar}").contains("{} is empty"));
        assert!(told("foo{bar").contains("no } follows"));
        assert!(told("user:123").contains("no hash tag"));
    }
}
