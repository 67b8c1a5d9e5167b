//! JSON values as YAML that people can read. Only what is needed: block style, quotes where a plain
//! word could be taken for something else, text of several lines as it is.

use serde_json::Value;

/// One document.
pub(super) fn document(value: &Value) -> String {
    let mut text = String::new();
    block(value, 0, &mut text);
    text
}

/// A value below its key or dash, from a new line on.
fn block(value: &Value, indent: usize, text: &mut String) {
    let pad = " ".repeat(indent);
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (name, field) in fields {
                text.push_str(&pad);
                text.push_str(&scalar(name));
                text.push(':');
                after(field, indent, text);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for item in items {
                text.push_str(&pad);
                text.push('-');
                match item {
                    Value::Object(fields) if !fields.is_empty() => {
                        let mut below = String::new();
                        block(item, indent + 2, &mut below);
                        text.push(' ');
                        text.push_str(below.trim_start());
                    }
                    _ => after(item, indent, text),
                }
            }
        }
        other => {
            text.push_str(&pad);
            text.push_str(&flow(other));
            text.push('\n');
        }
    }
}

/// A value behind its key or dash.
fn after(value: &Value, indent: usize, text: &mut String) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            text.push('\n');
            block(value, indent + 2, text);
        }
        Value::Array(items) if !items.is_empty() => {
            text.push('\n');
            block(value, indent + 2, text);
        }
        Value::String(lines) if is_literal(lines) => {
            text.push_str(" |\n");
            for line in lines.lines() {
                if !line.is_empty() {
                    text.push_str(&" ".repeat(indent + 2));
                    text.push_str(line);
                }
                text.push('\n');
            }
        }
        other => {
            text.push(' ');
            text.push_str(&flow(other));
            text.push('\n');
        }
    }
}

fn flow(value: &Value) -> String {
    match value {
        Value::String(text) => scalar(text),
        Value::Object(_) => "{}".to_owned(),
        Value::Array(_) => "[]".to_owned(),
        plain => plain.to_string(),
    }
}

/// Whether a text can stand as it is, line by line.
fn is_literal(text: &str) -> bool {
    let plain = |c: char| c == '\n' || !c.is_control();
    text.trim_end_matches('\n').contains('\n')
        && text.ends_with('\n')
        && !text.ends_with("\n\n")
        && !text.starts_with([' ', '\n'])
        && text.chars().all(plain)
}

fn scalar(text: &str) -> String {
    let safe = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '/' | '-');
    let words = ["true", "false", "yes", "no", "on", "off", "null", "y", "n"];
    let plain = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/')
        && text.chars().all(safe)
        && !words.contains(&text.to_ascii_lowercase().as_str());
    // What JSON quotes, YAML reads.
    if plain { text.to_owned() } else { Value::from(text).to_string() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_are_laid_out_in_blocks() {
        let value = json!({
            "a": { "list": ["x", 1, true, "yes", "1.5", "a: b", ""], "none": [], "empty": {} },
            "b": [{ "name": "one", "below": { "k": "v" } }, ["nested"]],
            "text": "first\n\n  second\n",
            "odd": "tail  \nno end",
        });
        assert_eq!(
            document(&value),
            r#"a:
  empty: {}
  list:
    - x
    - 1
    - true
    - "yes"
    - "1.5"
    - "a: b"
    - ""
  none: []
b:
  - below:
      k: v
    name: one
  -
    - nested
odd: "tail  \nno end"
text: |
  first

    second
"#
        );
    }
}
