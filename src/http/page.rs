//! Pages: `limit`, an opaque `cursor`, and `{items, next_cursor}`.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::error::ApiError;

pub const DEFAULT_LIMIT: i64 = 50;
pub const MAX_LIMIT: i64 = 200;

/// What of a list to show.
#[derive(Debug, Clone, PartialEq)]
pub struct Page {
    pub limit: i64,
    /// The key after which the page begins.
    pub after: Option<String>,
}

impl Page {
    pub fn read(limit: Option<i64>, cursor: Option<&str>) -> Result<Self, ApiError> {
        let limit = limit.unwrap_or(DEFAULT_LIMIT);
        if !(1..=MAX_LIMIT).contains(&limit) {
            return Err(ApiError::new(
                "invalid_parameter",
                format!("limit is from 1 to {MAX_LIMIT}"),
            ));
        }
        let after = cursor.map(decode).transpose()?;
        Ok(Self { limit, after })
    }

    /// Reads the cursor as a key of another type.
    pub fn key<T: std::str::FromStr>(&self) -> Result<Option<T>, ApiError> {
        self.after.as_deref().map(|k| k.parse().map_err(|_| bad_cursor())).transpose()
    }

    /// One more than is shown, to tell whether there is a next page.
    #[must_use]
    pub fn fetch(&self) -> i64 {
        self.limit + 1
    }

    /// Cuts what was fetched to the page and makes the cursor of the next.
    pub fn cut<T>(&self, items: &mut Vec<T>, key: impl Fn(&T) -> String) -> Option<String> {
        let limit = usize::try_from(self.limit).unwrap_or(usize::MAX);
        let more = items.len() > limit;
        items.truncate(limit);
        items.last().filter(|_| more).map(|last| URL_SAFE_NO_PAD.encode(key(last)))
    }
}

fn decode(cursor: &str) -> Result<String, ApiError> {
    let bytes = URL_SAFE_NO_PAD.decode(cursor).map_err(|_| bad_cursor())?;
    // Postgres cannot hold a NUL in a text.
    String::from_utf8(bytes).ok().filter(|k| !k.contains('\0')).ok_or_else(bad_cursor)
}

pub fn bad_cursor() -> ApiError {
    ApiError::new(
        "invalid_parameter",
        "the cursor is not one that this list gave; start without it",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_leads_to_the_next_page_and_to_nothing_else() {
        let page = Page::read(Some(2), None).unwrap();
        let mut items = vec!["a", "b", "c"];
        let cursor = page.cut(&mut items, ToString::to_string).unwrap();
        assert_eq!(items, ["a", "b"]);
        assert_eq!(Page::read(None, Some(&cursor)).unwrap().after.as_deref(), Some("b"));
        assert!(Page::read(Some(0), None).is_err());
        assert!(Page::read(None, Some("ö")).is_err());
        assert_eq!(page.cut(&mut vec!["a"], ToString::to_string), None);
    }
}
