import dataclasses
from typing import Any, Optional

HandleType = tuple
DEFERRABLE_TAGS = ("weights", "kv_cache")


@dataclasses.dataclass
class AllocationData:
    handle: HandleType
    tag: str
    cpu_backup_tensor: Optional[Any] = None
    is_asleep: bool = False
