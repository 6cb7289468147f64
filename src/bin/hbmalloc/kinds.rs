//! Kinds of memory as arguments name them.

use hbmalloc::source::Kind;

/// The kind of a name.
pub fn parse(name: &str) -> Result<Kind, String> {
    Kind::from_name(name).ok_or_else(|| {
        let names: Vec<&str> = Kind::ALL.iter().map(|kind| kind.name()).collect();
        format!("no such backend; there are {}", names.join(", "))
    })
}

/// Each of those named once, in their order; the pool where none is.
pub fn chosen(named: &[Kind]) -> Vec<Kind> {
    let mut kinds: Vec<Kind> = Vec::new();
    for kind in named {
        if !kinds.contains(kind) {
            kinds.push(*kind);
        }
    }
    if kinds.is_empty() {
        kinds.push(Kind::Pool);
    }
    kinds
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_named_twice_is_one() {
        assert_eq!(chosen(&[]), [Kind::Pool]);
        let named = [Kind::Vmm, Kind::Pool, Kind::Vmm];
        assert_eq!(chosen(&named), [Kind::Vmm, Kind::Pool]);
        assert_eq!(parse("vmm"), Ok(Kind::Vmm));
        assert!(parse("none").unwrap_err().contains("there are pool, "));
    }
}
