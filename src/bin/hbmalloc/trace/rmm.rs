//! RMM's log of allocations, as its `logging_resource_adaptor` writes it: CSV with the columns
//! `Thread,Time,Action,Pointer,Size,Stream`. A pointer names one block from `allocate` to `free`;
//! `allocate failure` and sizes of 0 are left out. The stream of a free is not looked at: torch's
//! entry points do not either.

use super::{Builder, Name, Wanted, number, short};
use std::collections::HashMap;

pub const COLUMNS: &str = "Thread,Time,Action,Pointer,Size,Stream";

/// How a null pointer is printed.
const NULL: &str = "(nil)";

/// Both handles of the legacy stream.
const LEGACY: [u64; 2] = [0, 1];

#[derive(Default)]
pub struct Log {
    /// Numbers of stream handles, in order of appearance.
    streams: HashMap<u64, usize>,
}

impl Log {
    /// Takes in one line.
    pub fn add(&mut self, builder: &mut Builder, line: &str) -> Result<(), String> {
        let fields: Vec<&str> = line.split(',').collect();
        let [_thread, _time, action, pointer, size, stream] = fields[..] else {
            return Err(format!("6 fields were expected, not {}", fields.len()));
        };
        let bytes = number("Size", size.trim())?;
        let name = Name {
            id: address("Pointer", pointer)?,
            text: pointer,
        };
        let stream = address("Stream", stream)?;
        match action {
            "allocate failure" => Ok(()),
            "allocate" | "free" | "deallocate" if bytes == 0 || name.id == 0 => Ok(()),
            "allocate" => {
                let stream = self.number_of(stream);
                builder.allocate(name, Wanted { bytes, stream })
            }
            "free" | "deallocate" => builder.free(name),
            _ => Err(format!(
                "Action '{}' is none of allocate, free and allocate failure",
                short(action)
            )),
        }
    }

    fn number_of(&mut self, handle: u64) -> usize {
        let handle = if LEGACY.contains(&handle) { 0 } else { handle };
        let next = self.streams.len();
        *self.streams.entry(handle).or_insert(next)
    }
}

fn address(name: &str, text: &str) -> Result<u64, String> {
    let text = text.trim();
    if text == NULL {
        return Ok(0);
    }
    let digits = text.strip_prefix("0x").unwrap_or(text);
    u64::from_str_radix(digits, 16)
        .map_err(|_| format!("{name} '{}' is no hexadecimal number", short(text)))
}

#[cfg(test)]
mod tests {
    use super::super::{Action, Trace};
    use super::*;

    fn read(lines: &str) -> Result<Trace, String> {
        let text = format!("{COLUMNS}\n{lines}");
        Trace::read("rmm.csv", text.as_bytes()).map_err(|error| error.to_string())
    }

    #[test]
    fn blocks_are_known_by_their_pointers_and_streams_numbered() {
        let trace = read(
            "11,10:00:00:000001,allocate,0x7f00,100,0x5500\n\
             12,10:00:00:000002,allocate,0x7f80,50,0x1\n\
             11,10:00:00:000003,allocate failure,(nil),999999,0x5500\n\
             11,10:00:00:000004,free,0x7f00,100,0x0\n\
             11,10:00:00:000005,allocate,(nil),0,0x0\n\
             11,10:00:00.000006,free,(nil),0,0x0\n\
             11,10:00:00:000007,allocate,0x7f00,10,0x0\n",
        )
        .unwrap();
        use Action::{Allocate, Free};
        let order: Vec<_> = trace.events.iter().map(|e| (e.action, e.block)).collect();
        assert_eq!(
            order,
            [(Allocate, 0), (Allocate, 1), (Free, 0), (Allocate, 2)]
        );
        let streams: Vec<_> = trace.blocks.iter().map(|block| block.stream).collect();
        assert_eq!((streams, trace.peak()), (vec![0, 1, 1], (150, 2)));
    }

    #[test]
    fn an_error_names_line_and_value() {
        let cases = [
            (
                "1,2,allocate,0x1,5\n",
                "line 2: 6 fields were expected, not 5",
            ),
            (
                "1,2,allocate,0xzz,5,0\n",
                "Pointer '0xzz' is no hexadecimal",
            ),
            ("1,2,allocate,0x8,-5,0\n", "Size '-5'"),
            ("1,2,allocate,0x8,5,q\n", "Stream 'q'"),
            ("1,2,grow,0x8,5,0\n", "Action 'grow' is none of"),
            ("1,2,free,0x8,5,0\n", "block 0x8 is freed and not alive"),
            (
                "1,2,allocate,0x8,5,0\n1,2,allocate,0x8,5,0\n",
                "line 3: block 0x8 is allocated while",
            ),
        ];
        for (lines, expected) in cases {
            let error = read(lines).unwrap_err();
            assert!(error.contains(expected), "{error} / {expected}");
        }
    }
}
