"""What the audit log may hold, how long, and what stands in it in clear."""

from pydantic import BaseModel, ConfigDict, Field


class AuditSettings(BaseModel):
    """The audit log: its limits, its checkpoints, retention, and privacy."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    waiting_max: int = Field(default=20_000, ge=1)
    """Records that wait to be written; some 20 MB, and a second of work. More are refused with 503."""
    batch_max: int = Field(default=1000, ge=1)
    """Records of one transaction; above that, latency grows and throughput does not."""
    answer_s_max: float = Field(default=10.0, gt=0)
    """Longest wait for a record to be written; then the operation is refused, for it could not be shown."""
    checkpoint_records: int = Field(default=1000, ge=1)
    """A checkpoint is signed after so many records at the latest: what a crash leaves unsigned is little."""
    checkpoint_s: float = Field(default=10.0, gt=0)
    """A checkpoint is signed after so long at the latest, where there is news."""
    read_rows_max: int = Field(default=1000, ge=1)
    """Most records of one read; an export comes in pages of as many."""
    flush_s: float = Field(default=0.25, gt=0)
    """Refusals are gathered so long: equal ones become one record with a count, so that a flood costs little."""
    refusals_max: int = Field(default=200, ge=1)
    """Different refusals of one flush; the rest of a flood is one record that counts them."""
    strangers_a_minute_max: int = Field(default=120, ge=1)
    """Different refusals of strangers that are written down within a minute, some 40 MB a day; the rest of them is one
    record a minute that counts them: who may do nothing may not fill the disk either."""
    retain_every_s: float = Field(default=3600.0, gt=0)
    """How often old records are emptied; retention is counted in days."""
    access_days: float = Field(default=90.0, gt=0)
    """Refusals and reads are kept in clear so long: what an investigation of an intrusion usually reaches back to."""
    change_days: float = Field(default=400.0, gt=0)
    """Goals accepted, cancelled, answered: a year and a month, so that a yearly audit sees all of its year."""
    administration_days: float = Field(default=2557.0, gt=0)
    """Drains, tokens, roles: seven years, as is asked of financial records."""
    hash_sources: bool = False
    """Write a keyed hash instead of the caller's address; equal ones stay equal, and none can be read back."""
    hash_principals: bool = False
    """Write a keyed hash instead of the caller's name; who has the key can still look for a name."""
