//! Where the simulated driver answers otherwise than a card, on purpose. Every other step of this
//! suite has the same answer on both.

/// A step with an answer of its own on the simulated driver.
pub struct Difference {
    pub case: &'static str,
    pub step: &'static str,
    pub simulated: &'static str,
    pub why: &'static str,
}

const LAX: &str = "the driver lets this mistake pass; the simulated one refuses it, unless HBMALLOC_SIM says strict=0";
const PAST: &str =
    "a simulated mapping cannot leave its reservation: other memory of the process may lie there";

const MODE: &str = "the driver takes any number for a capture mode; the simulated one only its own";

const fn refused(case: &'static str, step: &'static str, why: &'static str) -> Difference {
    Difference {
        case,
        step,
        simulated: "1",
        why,
    }
}

pub const KNOWN: &[Difference] = &[
    refused("map over two reservations", "map over the seam", PAST),
    refused("access over several mappings", "over a gap", LAX),
    refused("unmap", "two with a gap", LAX),
    refused("unmap where nothing is", "reserved only", LAX),
    refused("unmap where nothing is", "again", LAX),
    refused("unmap where nothing is", "unaligned", LAX),
    refused("capture: mode of the thread", "to 7", MODE),
    Difference {
        case: "pointer attributes",
        step: "mapped host node",
        simulated: "kind 1, mine false, device 0, device pointer 16, host pointer refused 1, managed 0, range 0+2097152, mapped 1, pooled false",
        why: "a card names the whole reservation for host memory, the simulated driver the mapping",
    },
];

/// The cases that are not asked of HIP, and why.
pub const NOT_OF_HIP: &[(&str, &str)] = &[
    ("devices by ordinal", NUMBERS),
    ("device properties", NUMBERS),
    ("create: fabric handles", NUMBERS),
    (
        "texts of codes",
        "HIP has the same codes under names of its own",
    ),
    ("stack of contexts", NO_CONTEXTS),
    ("primary context of another device", NO_CONTEXTS),
    ("without a context", NO_CONTEXTS),
    ("context of a stream", NO_CONTEXTS),
    ("pointer attributes", NO_CONTEXTS),
    ("managed: prefetch read back", NO_NODES),
    ("managed: advice that is refused", NO_NODES),
    ("managed: prefetch that is refused", NO_NODES),
    (
        "streams and events of two devices",
        "HIP has no event behind all work of a device",
    ),
];

const NUMBERS: &str =
    "HIP numbers attributes of its own, and has none for fabric handles and host nodes";
const NO_CONTEXTS: &str = "HIP has no contexts: a thread always has a current device";
const NO_NODES: &str = "HIP's advice and prefetch know devices and the host, no nodes";

/// Why a case is not asked of HIP, if it is not.
pub fn not_of_hip(case: &str) -> Option<&'static str> {
    let (_, why) = NOT_OF_HIP.iter().find(|(known, _)| *known == case)?;
    Some(why)
}

/// The difference at a step, if there is one.
pub fn of(case: &str, step: &str) -> Option<&'static Difference> {
    KNOWN
        .iter()
        .find(|known| known.case == case && known.step == step)
}

#[cfg(test)]
mod tests {
    use super::{KNOWN, NOT_OF_HIP};

    #[test]
    fn each_is_of_a_case_that_there_is() {
        let known = KNOWN.iter().map(|known| (known.case, known.why));
        for (name, why) in known.chain(NOT_OF_HIP.iter().copied()) {
            let mut cases = super::super::SUITE.cases();
            assert!(cases.any(|case| case.name == name), "{name}: {why}");
        }
    }
}
