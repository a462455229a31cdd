-- Rendered by `python -m fallow.store.render` from tables.py and statements.py. Do not edit.

-- name: schema
CREATE TABLE alembic_version (
  version_num VARCHAR(32) NOT NULL,
  PRIMARY KEY (version_num)
)

-- name: schema
CREATE TABLE jobs (
  number INTEGER NOT NULL,
  job_id VARCHAR NOT NULL,
  name VARCHAR NOT NULL,
  state VARCHAR NOT NULL,
  owner VARCHAR NOT NULL,
  epoch BIGINT NOT NULL,
  reason TEXT NOT NULL,
  total BIGINT NOT NULL,
  created_unix_s FLOAT NOT NULL,
  ended_unix_s FLOAT NOT NULL,
  nodes BLOB NOT NULL,
  input_error TEXT NOT NULL,
  consumed BIGINT NOT NULL,
  retried BIGINT NOT NULL,
  inputs_below BIGINT NOT NULL,
  failed BIGINT DEFAULT '0' NOT NULL,
  wasted_s FLOAT DEFAULT '0' NOT NULL,
  PRIMARY KEY (number)
)

-- name: schema
CREATE UNIQUE INDEX jobs_by_id ON jobs (job_id)

-- name: schema
CREATE INDEX jobs_by_name ON jobs (name, number)

-- name: schema
CREATE INDEX jobs_by_state ON jobs (state, number)

-- name: schema
CREATE TABLE leaderships (
  role VARCHAR NOT NULL,
  owner VARCHAR NOT NULL,
  term BIGINT NOT NULL,
  until_unix_s FLOAT NOT NULL,
  PRIMARY KEY (role)
)

-- name: schema
CREATE TABLE meta (
  name VARCHAR NOT NULL,
  value TEXT NOT NULL,
  PRIMARY KEY (name)
)

-- name: schema
CREATE TABLE nodes (
  node_id VARCHAR NOT NULL,
  spec BLOB NOT NULL,
  unix_s FLOAT NOT NULL,
  state VARCHAR NOT NULL,
  PRIMARY KEY (node_id)
)

-- name: schema
CREATE TABLE sessions (
  owner VARCHAR NOT NULL,
  epoch BIGINT NOT NULL,
  renewed_unix_s FLOAT NOT NULL,
  ttl_s FLOAT NOT NULL,
  info TEXT NOT NULL,
  PRIMARY KEY (owner)
)

-- name: schema
CREATE TABLE checkpoints (
  job INTEGER NOT NULL,
  task BIGINT NOT NULL,
  digest VARCHAR NOT NULL,
  size BIGINT NOT NULL,
  inline BOOLEAN NOT NULL,
  data BLOB,
  PRIMARY KEY (job, task),
  FOREIGN KEY(job) REFERENCES jobs (number) ON DELETE CASCADE
)

-- name: schema
CREATE INDEX checkpoint_blobs ON checkpoints (digest) WHERE NOT inline

-- name: schema
CREATE TABLE done_intervals (
  job INTEGER NOT NULL,
  start BIGINT NOT NULL,
  stop BIGINT NOT NULL,
  PRIMARY KEY (job, start),
  FOREIGN KEY(job) REFERENCES jobs (number) ON DELETE CASCADE
)

-- name: schema
CREATE TABLE input_pages (
  job INTEGER NOT NULL,
  start BIGINT NOT NULL,
  stop BIGINT NOT NULL,
  digest VARCHAR NOT NULL,
  size BIGINT NOT NULL,
  inline BOOLEAN NOT NULL,
  data BLOB,
  PRIMARY KEY (job, start),
  FOREIGN KEY(job) REFERENCES jobs (number) ON DELETE CASCADE
)

-- name: schema
CREATE INDEX input_blobs ON input_pages (digest) WHERE NOT inline

-- name: schema
CREATE TABLE job_blobs (
  job INTEGER NOT NULL,
  digest VARCHAR NOT NULL,
  PRIMARY KEY (job, digest),
  FOREIGN KEY(job) REFERENCES jobs (number) ON DELETE CASCADE
)

-- name: schema
CREATE INDEX job_blobs_by_digest ON job_blobs (digest)

-- name: schema
CREATE TABLE job_specs (
  job INTEGER NOT NULL,
  spec BLOB NOT NULL,
  PRIMARY KEY (job),
  FOREIGN KEY(job) REFERENCES jobs (number) ON DELETE CASCADE
)

-- name: schema
CREATE TABLE logs (
  job INTEGER NOT NULL,
  seq BIGINT NOT NULL,
  line BLOB NOT NULL,
  PRIMARY KEY (job, seq),
  FOREIGN KEY(job) REFERENCES jobs (number) ON DELETE CASCADE
)

-- name: schema
CREATE TABLE result_pages (
  job INTEGER NOT NULL,
  start BIGINT NOT NULL,
  stop BIGINT NOT NULL,
  seq BIGINT NOT NULL,
  page_start BIGINT NOT NULL,
  failed_count BIGINT NOT NULL,
  failed BLOB,
  fault BLOB,
  node VARCHAR NOT NULL,
  digest VARCHAR NOT NULL,
  size BIGINT NOT NULL,
  inline BOOLEAN NOT NULL,
  data BLOB,
  PRIMARY KEY (job, start),
  FOREIGN KEY(job) REFERENCES jobs (number) ON DELETE CASCADE
)

-- name: schema
CREATE INDEX result_blobs ON result_pages (digest) WHERE NOT inline

-- name: schema
CREATE INDEX result_order ON result_pages (job, seq, start)

-- name: schema
INSERT INTO alembic_version (version_num) VALUES ('0005')

-- name: revision
SELECT alembic_version.version_num
FROM alembic_version

-- name: pool_id
SELECT meta.value
FROM meta
WHERE meta.name = 'pool_id'

-- name: notes
SELECT meta.name, meta.value
FROM meta

-- name: put_meta
INSERT INTO meta (name, value) VALUES (:name, :value) ON CONFLICT DO NOTHING

-- name: drop_meta
DELETE FROM meta WHERE meta.name = :note

-- name: raise_epochs
UPDATE jobs SET epoch=(jobs.epoch + :by)

-- name: raise_terms
UPDATE leaderships SET term=(leaderships.term + :by), until_unix_s=0.0

-- name: live_digests
SELECT input_pages.digest
FROM input_pages
WHERE NOT input_pages.inline UNION SELECT result_pages.digest
FROM result_pages
WHERE NOT result_pages.inline UNION SELECT checkpoints.digest
FROM checkpoints
WHERE NOT checkpoints.inline UNION SELECT job_blobs.digest
FROM job_blobs

-- name: live_among
SELECT input_pages.digest
FROM input_pages
WHERE NOT input_pages.inline AND input_pages.digest IN (SELECT value FROM json_each(:digests)) UNION SELECT result_pages.digest
FROM result_pages
WHERE NOT result_pages.inline AND result_pages.digest IN (SELECT value FROM json_each(:digests)) UNION SELECT checkpoints.digest
FROM checkpoints
WHERE NOT checkpoints.inline AND checkpoints.digest IN (SELECT value FROM json_each(:digests)) UNION SELECT job_blobs.digest
FROM job_blobs
WHERE job_blobs.digest IN (SELECT value FROM json_each(:digests))

-- name: owned
SELECT jobs.job_id, jobs.number, jobs.epoch, jobs.owner, jobs.inputs_below
FROM jobs
WHERE jobs.job_id IN (SELECT value FROM json_each(:ids)) ORDER BY jobs.job_id

-- name: create_job
INSERT INTO jobs (job_id, name, state, owner, epoch, reason, total, created_unix_s, ended_unix_s, nodes, input_error, consumed, retried, inputs_below, failed, wasted_s) VALUES (:job_id, :name, :state, :owner, :epoch, :reason, :total, :created_unix_s, :ended_unix_s, :nodes, :input_error, :consumed, :retried, :inputs_below, :failed, :wasted_s)

-- name: number
SELECT jobs.number
FROM jobs
WHERE jobs.job_id = :id

-- name: put_spec
INSERT INTO job_specs (job, spec) VALUES (:job, :spec) ON CONFLICT DO NOTHING

-- name: put_job_blob
INSERT INTO job_blobs (job, digest) VALUES (:job, :digest) ON CONFLICT DO NOTHING

-- name: set_job
UPDATE jobs SET state=coalesce(:new_state, jobs.state), reason=coalesce(:new_reason, jobs.reason), total=coalesce(:new_total, jobs.total), ended_unix_s=coalesce(:new_ended_unix_s, jobs.ended_unix_s), nodes=coalesce(:new_nodes, jobs.nodes), input_error=coalesce(:new_input_error, jobs.input_error), consumed=coalesce(:new_consumed, jobs.consumed), retried=coalesce(:new_retried, jobs.retried), failed=coalesce(:new_failed, jobs.failed), wasted_s=coalesce(:new_wasted_s, jobs.wasted_s) WHERE jobs.number = :job

-- name: set_inputs_below
UPDATE jobs SET inputs_below=:below WHERE jobs.number = :job

-- name: take_job
UPDATE jobs SET owner=:new_owner, epoch=(jobs.epoch + 1) WHERE jobs.job_id = :id

-- name: take_free_job
UPDATE jobs SET owner=:new_owner, epoch=(jobs.epoch + 1) WHERE jobs.job_id = :id AND (jobs.owner = :same_owner OR NOT (EXISTS (SELECT sessions.owner
FROM sessions
WHERE sessions.owner = jobs.owner AND sessions.ttl_s > 0.0)))

-- name: release_job
UPDATE jobs SET owner=:new_owner, epoch=(jobs.epoch + 1) WHERE jobs.job_id = :id AND jobs.epoch = :held_epoch

-- name: owner_of
SELECT jobs.owner, jobs.epoch
FROM jobs
WHERE jobs.job_id = :id

-- name: lock_job
SELECT jobs.owner, jobs.epoch
FROM jobs
WHERE jobs.job_id = :id

-- name: jobs_of_dead_owners
SELECT jobs.job_id, jobs.owner
FROM jobs
WHERE jobs.state IN ('open', 'running') AND NOT (EXISTS (SELECT sessions.owner
FROM sessions
WHERE sessions.owner = jobs.owner AND sessions.ttl_s > 0.0)) ORDER BY jobs.number
 LIMIT :count OFFSET 0

-- name: unread_of_dead_owners
SELECT jobs.job_id
FROM jobs
WHERE jobs.ended_unix_s > :after AND jobs.inputs_below < 4611686018427387904 AND NOT (EXISTS (SELECT sessions.owner
FROM sessions
WHERE sessions.owner = jobs.owner AND sessions.ttl_s > 0.0)) ORDER BY jobs.number DESC
 LIMIT :count OFFSET 0

-- name: delete_job
DELETE FROM jobs WHERE jobs.number = :job

-- name: get_job
SELECT jobs.state, jobs.reason, jobs.owner, jobs.epoch, jobs.total, jobs.created_unix_s, jobs.ended_unix_s, jobs.nodes, jobs.input_error, jobs.consumed, jobs.retried, jobs.failed, jobs.wasted_s, job_specs.spec
FROM jobs JOIN job_specs ON job_specs.job = jobs.number
WHERE jobs.job_id = :id

-- name: list_jobs
SELECT jobs.state, jobs.reason, jobs.owner, jobs.epoch, jobs.total, jobs.created_unix_s, jobs.ended_unix_s, jobs.nodes, jobs.input_error, jobs.consumed, jobs.retried, jobs.failed, jobs.wasted_s, job_specs.spec
FROM jobs JOIN job_specs ON job_specs.job = jobs.number ORDER BY jobs.number DESC
 LIMIT :count OFFSET 0

-- name: list_active_jobs
SELECT jobs.state, jobs.reason, jobs.owner, jobs.epoch, jobs.total, jobs.created_unix_s, jobs.ended_unix_s, jobs.nodes, jobs.input_error, jobs.consumed, jobs.retried, jobs.failed, jobs.wasted_s, job_specs.spec
FROM jobs JOIN job_specs ON job_specs.job = jobs.number
WHERE jobs.state IN ('open', 'running') ORDER BY jobs.number DESC
 LIMIT :count OFFSET 0

-- name: find_by_id
SELECT jobs.job_id
FROM jobs
WHERE jobs.job_id = :text

-- name: find_by_name
SELECT jobs.job_id
FROM jobs
WHERE jobs.name = :text ORDER BY jobs.number DESC
 LIMIT 1 OFFSET 0

-- name: find_by_prefix
SELECT jobs.job_id
FROM jobs
WHERE jobs.job_id >= :text AND jobs.job_id < :after
 LIMIT 2 OFFSET 0

-- name: put_input
INSERT INTO input_pages (job, start, stop, digest, size, inline, data) VALUES (:job, :start, :stop, :digest, :size, :inline, :data) ON CONFLICT DO NOTHING

-- name: put_result
INSERT INTO result_pages (job, start, stop, seq, page_start, failed_count, failed, fault, node, digest, size, inline, data) VALUES (:job, :start, :stop, :seq, :page_start, :failed_count, :failed, :fault, :node, :digest, :size, :inline, :data) ON CONFLICT DO NOTHING

-- name: input_index
SELECT input_pages.start, input_pages.stop, input_pages.digest, input_pages.size, input_pages.inline
FROM input_pages
WHERE input_pages.job = (SELECT jobs.number
FROM jobs
WHERE jobs.job_id = :id) ORDER BY input_pages.start

-- name: inputs_stop
SELECT input_pages.stop
FROM input_pages
WHERE input_pages.job = (SELECT jobs.number
FROM jobs
WHERE jobs.job_id = :id) ORDER BY input_pages.start DESC
 LIMIT 1 OFFSET 0

-- name: result_index
SELECT result_pages.seq, result_pages.start, result_pages.stop, result_pages.page_start, result_pages.digest, result_pages.size, result_pages.inline, result_pages.failed_count, result_pages.failed, result_pages.fault, result_pages.node
FROM result_pages
WHERE result_pages.job = (SELECT jobs.number
FROM jobs
WHERE jobs.job_id = :id) ORDER BY result_pages.seq, result_pages.start

-- name: read_input
SELECT input_pages.start, input_pages.digest, input_pages.size, input_pages.inline, input_pages.data
FROM input_pages
WHERE input_pages.job = (SELECT jobs.number
FROM jobs
WHERE jobs.job_id = :id) AND input_pages.start IN (SELECT value FROM json_each(:starts))

-- name: read_results
SELECT result_pages.start, result_pages.digest, result_pages.size, result_pages.inline, result_pages.data
FROM result_pages
WHERE result_pages.job = (SELECT jobs.number
FROM jobs
WHERE jobs.job_id = :id) AND result_pages.start IN (SELECT value FROM json_each(:starts))

-- name: drop_inputs
DELETE FROM input_pages WHERE input_pages.job = :number AND input_pages.start < :below AND input_pages.stop <= :below

-- name: results_below
SELECT result_pages.start, result_pages.stop
FROM result_pages
WHERE result_pages.job = :number AND result_pages.start < :below AND result_pages.stop <= :below

-- name: drop_results_below
DELETE FROM result_pages WHERE result_pages.job = :number AND result_pages.start < :below AND result_pages.stop <= :below

-- name: results_below_seq
SELECT result_pages.start, result_pages.stop
FROM result_pages
WHERE result_pages.job = :number AND result_pages.seq < :below

-- name: drop_results_below_seq
DELETE FROM result_pages WHERE result_pages.job = :number AND result_pages.seq < :below

-- name: results_near
SELECT result_pages.start, result_pages.stop, result_pages.failed_count, result_pages.failed
FROM result_pages
WHERE result_pages.job = :number AND result_pages.start >= coalesce((SELECT max(result_pages.start) AS max_1
FROM result_pages
WHERE result_pages.job = :number AND result_pages.start <= :low), :low) AND result_pages.start <= :high ORDER BY result_pages.start

-- name: copy_result
INSERT INTO result_pages (job, start, stop, seq, page_start, failed_count, failed, fault, node, digest, size, inline, data) SELECT result_pages.job, CAST(:new_start AS BIGINT) AS anon_1, CAST(:new_stop AS BIGINT) AS anon_2, result_pages.seq, result_pages.page_start, CAST(:new_failed_count AS BIGINT) AS anon_3, CAST(:new_failed AS BLOB) AS anon_4, result_pages.fault, result_pages.node, result_pages.digest, result_pages.size, result_pages.inline, result_pages.data
FROM result_pages
WHERE result_pages.job = :number AND result_pages.start = :old_start

-- name: cut_result
UPDATE result_pages SET start=CAST(:new_start AS BIGINT), stop=CAST(:new_stop AS BIGINT), failed_count=CAST(:new_failed_count AS BIGINT), failed=CAST(:new_failed AS BLOB) WHERE result_pages.job = :number AND result_pages.start = :old_start

-- name: remove_result
DELETE FROM result_pages WHERE result_pages.job = :number AND result_pages.start = :old_start

-- name: done_intervals
SELECT done_intervals.start, done_intervals.stop
FROM done_intervals
WHERE done_intervals.job = (SELECT jobs.number
FROM jobs
WHERE jobs.job_id = :id) ORDER BY done_intervals.start

-- name: done_near
SELECT done_intervals.start, done_intervals.stop
FROM done_intervals
WHERE done_intervals.job = :number AND done_intervals.start >= coalesce((SELECT max(done_intervals.start) AS max_1
FROM done_intervals
WHERE done_intervals.job = :number AND done_intervals.start <= :low), :low) AND done_intervals.start <= :high ORDER BY done_intervals.start

-- name: add_done
INSERT INTO done_intervals (job, start, stop) VALUES (:job, :start, :stop)

-- name: remove_done
DELETE FROM done_intervals WHERE done_intervals.job = :number AND done_intervals.start = :old_start

-- name: put_checkpoint
INSERT INTO checkpoints (job, task, digest, size, inline, data) VALUES (:job, :task, :digest, :size, :inline, :data) ON CONFLICT (job, task) DO UPDATE SET digest = excluded.digest, size = excluded.size, inline = excluded.inline, data = excluded.data

-- name: drop_checkpoints
DELETE FROM checkpoints WHERE checkpoints.job = :number AND checkpoints.task >= :low AND checkpoints.task < :high

-- name: checkpoints
SELECT checkpoints.task, checkpoints.digest, checkpoints.size, checkpoints.inline, checkpoints.data
FROM checkpoints
WHERE checkpoints.job = (SELECT jobs.number
FROM jobs
WHERE jobs.job_id = :id) ORDER BY checkpoints.task

-- name: put_log
INSERT INTO logs (job, seq, line) VALUES (:job, :seq, :line) ON CONFLICT DO NOTHING

-- name: drop_logs
DELETE FROM logs WHERE logs.job = :number AND logs.seq <= (SELECT logs.seq
FROM logs
WHERE logs.job = :number ORDER BY logs.seq DESC
 LIMIT 1 OFFSET :keep)

-- name: read_logs
SELECT logs.seq, logs.line
FROM logs
WHERE logs.job = (SELECT jobs.number
FROM jobs
WHERE jobs.job_id = :id) AND logs.seq > :after ORDER BY logs.seq
 LIMIT :count OFFSET 0

-- name: put_node
INSERT INTO nodes (node_id, spec, unix_s, state) VALUES (:node_id, :spec, :unix_s, :state) ON CONFLICT (node_id) DO UPDATE SET spec = excluded.spec, unix_s = excluded.unix_s, state = excluded.state

-- name: renew_session
INSERT INTO sessions (owner, epoch, renewed_unix_s, ttl_s, info) VALUES (:owner, 1, ((julianday('now') - 2440587.5) * 86400.0), :ttl_s, :info) ON CONFLICT (owner) DO UPDATE SET epoch = (sessions.epoch + CASE WHEN (sessions.ttl_s > 0.0 AND :anew = 0) THEN 0 ELSE 1 END), renewed_unix_s = CASE WHEN (excluded.renewed_unix_s > sessions.renewed_unix_s + 0.001) THEN excluded.renewed_unix_s ELSE sessions.renewed_unix_s + 0.001 END, ttl_s = excluded.ttl_s, info = excluded.info

-- name: session
SELECT sessions.epoch
FROM sessions
WHERE sessions.owner = :owner

-- name: sessions
SELECT sessions.owner, sessions.renewed_unix_s, sessions.ttl_s, sessions.info
FROM sessions
WHERE sessions.ttl_s > 0.0 ORDER BY sessions.owner

-- name: end_session
UPDATE sessions SET ttl_s=-1.0 WHERE sessions.owner = :ended_owner

-- name: end_silent
UPDATE sessions SET ttl_s=-1.0 WHERE sessions.owner = :ended_owner AND sessions.renewed_unix_s = :stamp AND sessions.ttl_s > 0.0

-- name: forget_sessions
DELETE FROM sessions WHERE sessions.renewed_unix_s + :kept_s < ((julianday('now') - 2440587.5) * 86400.0) AND sessions.ttl_s <= 0.0

-- name: lead
INSERT INTO leaderships (role, owner, term, until_unix_s) VALUES (:role, :owner, 1, 1.0) ON CONFLICT (role) DO UPDATE SET owner = excluded.owner, term = (leaderships.term + CASE WHEN (leaderships.until_unix_s > 0.0 AND EXISTS (SELECT 1 FROM sessions WHERE sessions.owner = leaderships.owner AND sessions.ttl_s > 0.0)) THEN 0 ELSE 1 END), until_unix_s = excluded.until_unix_s WHERE NOT (leaderships.until_unix_s > 0.0 AND EXISTS (SELECT 1 FROM sessions WHERE sessions.owner = leaderships.owner AND sessions.ttl_s > 0.0)) AND EXISTS (SELECT 1 FROM leaderships AS seen WHERE seen.role = leaderships.role AND seen.owner = leaderships.owner AND seen.term = leaderships.term) OR leaderships.owner = excluded.owner

-- name: lead_alone
INSERT INTO leaderships (role, owner, term, until_unix_s) VALUES (:role, :owner, 1, 1.0) ON CONFLICT (role) DO UPDATE SET owner = excluded.owner, term = (leaderships.term + 1), until_unix_s = excluded.until_unix_s

-- name: leader
SELECT leaderships.owner, leaderships.term
FROM leaderships
WHERE leaderships.role = :role

-- name: end_leadership
UPDATE leaderships SET until_unix_s=0.0 WHERE leaderships.owner = :ended_owner

-- name: list_nodes
SELECT nodes.spec, nodes.unix_s, nodes.state
FROM nodes ORDER BY nodes.node_id
