//! Lines of JSON: flat objects, written by the command and read from programs that it starts.

/// A JSON string.
pub fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for letter in text.chars() {
        match letter {
            '"' | '\\' => out.extend(['\\', letter]),
            control if control < ' ' => out.push_str(&format!("\\u{:04x}", control as u32)),
            other => out.push(other),
        }
    }
    out.push('"');
    out
}

/// What stands behind `"name":` in a flat object that holds no such text elsewhere: a number, or a
/// string without its quotes and escapes.
pub fn field(object: &str, name: &str) -> Option<String> {
    let start = object.find(&format!("\"{name}\":"))? + name.len() + 3;
    let value = &object[start..];
    let Some(text) = value.strip_prefix('"') else {
        return Some(value.split([',', '}']).next()?.to_owned());
    };
    let mut out = String::new();
    let mut letters = text.chars();
    loop {
        match letters.next()? {
            '"' => return Some(out),
            '\\' => out.push(letters.next()?),
            letter => out.push(letter),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings() {
        assert_eq!(quoted("a\"\\\n"), "\"a\\\"\\\\\\u000a\"");
    }

    #[test]
    fn fields() {
        let object = r#"{"case":"1 \"x\" KiB","ns_median":2.50,"pairs":7}"#;
        assert_eq!(field(object, "case").unwrap(), "1 \"x\" KiB");
        assert_eq!(field(object, "ns_median").unwrap(), "2.50");
        assert_eq!(field(object, "pairs").unwrap(), "7");
        assert_eq!(field(object, "ns"), None);
        assert_eq!(field(r#"{"case":"cut"#, "case"), None);
    }
}
