//! Names that group blocks, and the small numbers that stand for them: a block carries two bytes, and
//! a report turns them back into the name. A number stays what it is for as long as the process lives.

use super::sync::lock;
use crate::error::{Error, Result, Status};
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock};

/// The number of a tag; 0 for what has none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TagId(u16);

impl TagId {
    /// No tag.
    pub const NONE: TagId = TagId(0);

    /// The id of a number that [`TagId::number`] gave.
    pub const fn from_number(number: u16) -> TagId {
        TagId(number)
    }

    /// The id as a number.
    pub const fn number(self) -> u16 {
        self.0
    }

    /// Whether it stands for no tag.
    pub const fn is_none(self) -> bool {
        self.0 == 0
    }

    /// This one, or where it is none, what `other` says.
    pub fn or_else(self, other: impl FnOnce() -> TagId) -> TagId {
        if self.is_none() { other() } else { self }
    }
}

/// The longest name, in bytes.
pub const MAX_NAME: usize = 255;
/// How many names there can be: every number but that of no tag.
pub const MAX_TAGS: usize = u16::MAX as usize;

/// Names are kept in segments made when first needed, so that an unused table is small and a name,
/// once written, never moves.
const SEGMENT: usize = 1024;
const SEGMENTS: usize = (MAX_TAGS + 1) / SEGMENT;

type Segment = Box<[OnceLock<Arc<str>>]>;

/// The names in use. Looking a name up by its id takes no lock.
pub struct Tags {
    names: [OnceLock<Segment>; SEGMENTS],
    ids: Mutex<Option<HashMap<Arc<str>, TagId>>>,
}

impl Default for Tags {
    fn default() -> Tags {
        Tags::new()
    }
}

impl Tags {
    /// An empty table.
    pub const fn new() -> Tags {
        Tags {
            names: [const { OnceLock::new() }; SEGMENTS],
            ids: Mutex::new(None),
        }
    }

    /// The id of a name, the same for the same name always. A name has 1 to 255 bytes and no NUL.
    pub fn intern(&self, name: &str) -> Result<TagId> {
        check_name(name)?;
        let mut guard = lock(&self.ids);
        let ids = guard.get_or_insert_default();
        if let Some(id) = ids.get(name) {
            return Ok(*id);
        }
        let number = ids.len() + 1;
        if number > MAX_TAGS {
            return Err(Error::new(Status::Busy, "tag")
                .detail(format!(
                    "{MAX_TAGS} tags are in use, which is all there are, so '{name}' cannot be one"
                ))
                .advice(
                    "A tag names a kind of memory, such as weights, and is not made for each block",
                ));
        }
        let name: Arc<str> = Arc::from(name);
        let id = TagId(number as u16);
        // The segment was made and the slot is fresh: numbers are given out once, under this lock.
        let _ = self.slot(id).set(name.clone());
        ids.insert(name, id);
        Ok(id)
    }

    /// The id of a name, where it has one; an error where it can be none.
    pub fn find(&self, name: &str) -> Result<Option<TagId>> {
        check_name(name)?;
        let guard = lock(&self.ids);
        Ok(guard.as_ref().and_then(|ids| ids.get(name)).copied())
    }

    /// How many names there are.
    pub fn len(&self) -> usize {
        lock(&self.ids).as_ref().map_or(0, HashMap::len)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The name of an id; none for no tag and for a number not in use.
    pub fn name(&self, id: TagId) -> Option<&Arc<str>> {
        let segment = self.names[usize::from(id.0) / SEGMENT].get()?;
        segment[usize::from(id.0) % SEGMENT].get()
    }

    /// Every tag and its name, in the order of their first use.
    pub fn list(&self) -> Vec<(TagId, Arc<str>)> {
        (1..=u16::MAX)
            .map(TagId)
            .map_while(|id| Some((id, self.name(id)?.clone())))
            .collect()
    }

    fn slot(&self, id: TagId) -> &OnceLock<Arc<str>> {
        let segment = self.names[usize::from(id.0) / SEGMENT]
            .get_or_init(|| (0..SEGMENT).map(|_| OnceLock::new()).collect());
        &segment[usize::from(id.0) % SEGMENT]
    }
}

impl fmt::Debug for Tags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.list()).finish()
    }
}

fn check_name(name: &str) -> Result<()> {
    let problem = match name.len() {
        0 => "a tag needs a name".to_owned(),
        bytes if bytes > MAX_NAME => {
            format!("a tag's name has at most {MAX_NAME} bytes, this one has {bytes} bytes")
        }
        _ if name.contains('\0') => "a tag's name holds no NUL".to_owned(),
        _ => return Ok(()),
    };
    Err(Error::invalid("tag", problem))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_same_name_has_the_same_id_on_every_thread() {
        let tags = Tags::new();
        let seen: Vec<Vec<TagId>> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|offset| {
                    let tags = &tags;
                    scope.spawn(move || {
                        let mut ids = vec![TagId::NONE; 50];
                        for step in 0..50 {
                            let which = (step + offset * 7) % 50;
                            ids[which] = tags.intern(&format!("tag {which}")).unwrap();
                            assert_eq!(&**tags.name(ids[which]).unwrap(), format!("tag {which}"));
                        }
                        ids
                    })
                })
                .collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        assert!(seen.iter().all(|ids| *ids == seen[0]));
        assert_eq!(tags.list().len(), 50);
    }

    #[test]
    fn the_table_fills_and_says_so() {
        let tags = Tags::new();
        for number in 1..=MAX_TAGS {
            let id = tags.intern(&number.to_string()).unwrap();
            assert_eq!(usize::from(id.number()), number);
        }
        let error = tags.intern("one more").unwrap_err();
        assert_eq!(error.status(), Status::Busy);
        assert!(error.to_string().contains("65535"), "{error}");
        assert_eq!(tags.intern("7").unwrap().number(), 7);
        assert_eq!(&**tags.name(TagId(u16::MAX)).unwrap(), "65535");
        assert_eq!(tags.list().len(), MAX_TAGS);
    }

    #[test]
    fn names_that_are_none() {
        let tags = Tags::new();
        for bad in ["", "a\0b", &"x".repeat(256)] {
            for error in [tags.intern(bad).unwrap_err(), tags.find(bad).unwrap_err()] {
                assert_eq!(error.status(), Status::InvalidArgument);
            }
        }
        assert!(tags.is_empty() && tags.find("x").unwrap().is_none());
        tags.intern(&"x".repeat(255)).unwrap();
        assert!(tags.name(TagId::NONE).is_none() && tags.name(TagId(2)).is_none());
    }

    proptest! {
        #[test]
        fn agrees_with_a_plain_list(names in proptest::collection::vec("[a-d]{1,2}", 0..60)) {
            let tags = Tags::new();
            let mut model: Vec<String> = Vec::new();
            for name in names {
                if !model.contains(&name) {
                    model.push(name.clone());
                }
                let id = tags.intern(&name).unwrap();
                prop_assert_eq!(&model[usize::from(id.number()) - 1], &name);
                prop_assert_eq!(tags.find(&name).unwrap(), Some(id));
                prop_assert_eq!(tags.len(), model.len());
                prop_assert_eq!(&**tags.name(id).unwrap(), name.as_str());
            }
            prop_assert_eq!(tags.list().len(), model.len());
        }
    }
}
