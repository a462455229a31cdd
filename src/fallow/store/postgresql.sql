-- Rendered by `python -m fallow.store.render` from tables.py and statements.py. Do not edit.

-- name: schema
CREATE TABLE alembic_version (
  version_num VARCHAR(32) NOT NULL,
  PRIMARY KEY (version_num)
)

-- name: schema
CREATE TABLE jobs (
  number BIGSERIAL NOT NULL,
  job_id VARCHAR COLLATE "C" NOT NULL,
  name VARCHAR COLLATE "C" NOT NULL,
  state VARCHAR NOT NULL,
  owner VARCHAR COLLATE "C" NOT NULL,
  epoch BIGINT NOT NULL,
  reason TEXT NOT NULL,
  total BIGINT NOT NULL,
  created_unix_s DOUBLE PRECISION NOT NULL,
  ended_unix_s DOUBLE PRECISION NOT NULL,
  nodes BYTEA NOT NULL,
  input_error TEXT NOT NULL,
  consumed BIGINT NOT NULL,
  retried BIGINT NOT NULL,
  inputs_below BIGINT NOT NULL,
  failed BIGINT DEFAULT '0' NOT NULL,
  wasted_s DOUBLE PRECISION DEFAULT '0' NOT NULL,
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
  role VARCHAR COLLATE "C" NOT NULL,
  owner VARCHAR COLLATE "C" NOT NULL,
  term BIGINT NOT NULL,
  until_unix_s DOUBLE PRECISION NOT NULL,
  PRIMARY KEY (role)
)

-- name: schema
CREATE TABLE meta (
  name VARCHAR COLLATE "C" NOT NULL,
  value TEXT NOT NULL,
  PRIMARY KEY (name)
)

-- name: schema
CREATE TABLE nodes (
  node_id VARCHAR COLLATE "C" NOT NULL,
  spec BYTEA NOT NULL,
  unix_s DOUBLE PRECISION NOT NULL,
  state VARCHAR NOT NULL,
  PRIMARY KEY (node_id)
)

-- name: schema
CREATE TABLE sessions (
  owner VARCHAR COLLATE "C" NOT NULL,
  epoch BIGINT NOT NULL,
  renewed_unix_s DOUBLE PRECISION NOT NULL,
  ttl_s DOUBLE PRECISION NOT NULL,
  info TEXT NOT NULL,
  PRIMARY KEY (owner)
)

-- name: schema
CREATE TABLE checkpoints (
  job BIGINT NOT NULL,
  task BIGINT NOT NULL,
  digest VARCHAR COLLATE "C" NOT NULL,
  size BIGINT NOT NULL,
  inline BOOLEAN NOT NULL,
  data BYTEA,
  PRIMARY KEY (job, task),
  FOREIGN KEY(job) REFERENCES jobs (number) ON DELETE CASCADE
)

-- name: schema
CREATE INDEX checkpoint_blobs ON checkpoints (digest) WHERE NOT inline

-- name: schema
CREATE TABLE done_intervals (
  job BIGINT NOT NULL,
  start BIGINT NOT NULL,
  stop BIGINT NOT NULL,
  PRIMARY KEY (job, start),
  FOREIGN KEY(job) REFERENCES jobs (number) ON DELETE CASCADE
)

-- name: schema
CREATE TABLE input_pages (
  job BIGINT NOT NULL,
  start BIGINT NOT NULL,
  stop BIGINT NOT NULL,
  digest VARCHAR COLLATE "C" NOT NULL,
  size BIGINT NOT NULL,
  inline BOOLEAN NOT NULL,
  data BYTEA,
  PRIMARY KEY (job, start),
  FOREIGN KEY(job) REFERENCES jobs (number) ON DELETE CASCADE
)

-- name: schema
CREATE INDEX input_blobs ON input_pages (digest) WHERE NOT inline

-- name: schema
CREATE TABLE job_blobs (
  job BIGINT NOT NULL,
  digest VARCHAR COLLATE "C" NOT NULL,
  PRIMARY KEY (job, digest),
  FOREIGN KEY(job) REFERENCES jobs (number) ON DELETE CASCADE
)

-- name: schema
CREATE INDEX job_blobs_by_digest ON job_blobs (digest)

-- name: schema
CREATE TABLE job_specs (
  job BIGINT NOT NULL,
  spec BYTEA NOT NULL,
  PRIMARY KEY (job),
  FOREIGN KEY(job) REFERENCES jobs (number) ON DELETE CASCADE
)

-- name: schema
CREATE TABLE logs (
  job BIGINT NOT NULL,
  seq BIGINT NOT NULL,
  line BYTEA NOT NULL,
  PRIMARY KEY (job, seq),
  FOREIGN KEY(job) REFERENCES jobs (number) ON DELETE CASCADE
)

-- name: schema
CREATE TABLE result_pages (
  job BIGINT NOT NULL,
  start BIGINT NOT NULL,
  stop BIGINT NOT NULL,
  seq BIGINT NOT NULL,
  page_start BIGINT NOT NULL,
  failed_count BIGINT NOT NULL,
  failed BYTEA,
  fault BYTEA,
  node VARCHAR NOT NULL,
  digest VARCHAR COLLATE "C" NOT NULL,
  size BIGINT NOT NULL,
  inline BOOLEAN NOT NULL,
  data BYTEA,
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
INSERT INTO meta (name, value) VALUES (%(name)s::VARCHAR COLLATE "C", %(value)s::VARCHAR) ON CONFLICT DO NOTHING

-- name: drop_meta
DELETE FROM meta WHERE meta.name = %(note)s::VARCHAR COLLATE "C"

-- name: raise_epochs
UPDATE jobs SET epoch=(jobs.epoch + %(by)s::BIGINT)

-- name: raise_terms
UPDATE leaderships SET term=(leaderships.term + %(by)s::BIGINT), until_unix_s=0.0

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
WHERE NOT input_pages.inline AND input_pages.digest = ANY (ARRAY(SELECT CAST(json_array_elements_text(CAST(%(digests)s::VARCHAR AS JSON)) AS TEXT))) UNION SELECT result_pages.digest
FROM result_pages
WHERE NOT result_pages.inline AND result_pages.digest = ANY (ARRAY(SELECT CAST(json_array_elements_text(CAST(%(digests)s::VARCHAR AS JSON)) AS TEXT))) UNION SELECT checkpoints.digest
FROM checkpoints
WHERE NOT checkpoints.inline AND checkpoints.digest = ANY (ARRAY(SELECT CAST(json_array_elements_text(CAST(%(digests)s::VARCHAR AS JSON)) AS TEXT))) UNION SELECT job_blobs.digest
FROM job_blobs
WHERE job_blobs.digest = ANY (ARRAY(SELECT CAST(json_array_elements_text(CAST(%(digests)s::VARCHAR AS JSON)) AS TEXT)))

-- name: owned
SELECT jobs.job_id, jobs.number, jobs.epoch, jobs.owner, jobs.inputs_below
FROM jobs
WHERE jobs.job_id = ANY (ARRAY(SELECT CAST(json_array_elements_text(CAST(%(ids)s::VARCHAR AS JSON)) AS TEXT))) ORDER BY jobs.job_id FOR UPDATE

-- name: create_job
INSERT INTO jobs (job_id, name, state, owner, epoch, reason, total, created_unix_s, ended_unix_s, nodes, input_error, consumed, retried, inputs_below, failed, wasted_s) VALUES (%(job_id)s::VARCHAR COLLATE "C", %(name)s::VARCHAR COLLATE "C", %(state)s::VARCHAR, %(owner)s::VARCHAR COLLATE "C", %(epoch)s::BIGINT, %(reason)s::VARCHAR, %(total)s::BIGINT, %(created_unix_s)s, %(ended_unix_s)s, %(nodes)s, %(input_error)s::VARCHAR, %(consumed)s::BIGINT, %(retried)s::BIGINT, %(inputs_below)s::BIGINT, %(failed)s::BIGINT, %(wasted_s)s)

-- name: number
SELECT jobs.number
FROM jobs
WHERE jobs.job_id = %(id)s::VARCHAR COLLATE "C"

-- name: put_spec
INSERT INTO job_specs (job, spec) VALUES (%(job)s::BIGINT, %(spec)s) ON CONFLICT DO NOTHING

-- name: put_job_blob
INSERT INTO job_blobs (job, digest) VALUES (%(job)s::BIGINT, %(digest)s::VARCHAR COLLATE "C") ON CONFLICT DO NOTHING

-- name: set_job
UPDATE jobs SET state=coalesce(%(new_state)s::VARCHAR, jobs.state), reason=coalesce(%(new_reason)s::VARCHAR, jobs.reason), total=coalesce(%(new_total)s::BIGINT, jobs.total), ended_unix_s=coalesce(%(new_ended_unix_s)s, jobs.ended_unix_s), nodes=coalesce(%(new_nodes)s, jobs.nodes), input_error=coalesce(%(new_input_error)s::VARCHAR, jobs.input_error), consumed=coalesce(%(new_consumed)s::BIGINT, jobs.consumed), retried=coalesce(%(new_retried)s::BIGINT, jobs.retried), failed=coalesce(%(new_failed)s::BIGINT, jobs.failed), wasted_s=coalesce(%(new_wasted_s)s, jobs.wasted_s) WHERE jobs.number = %(job)s::BIGINT

-- name: set_inputs_below
UPDATE jobs SET inputs_below=%(below)s::BIGINT WHERE jobs.number = %(job)s::BIGINT

-- name: take_job
UPDATE jobs SET owner=%(new_owner)s::VARCHAR COLLATE "C", epoch=(jobs.epoch + 1) WHERE jobs.job_id = %(id)s::VARCHAR COLLATE "C"

-- name: take_free_job
UPDATE jobs SET owner=%(new_owner)s::VARCHAR COLLATE "C", epoch=(jobs.epoch + 1) WHERE jobs.job_id = %(id)s::VARCHAR COLLATE "C" AND (jobs.owner = %(same_owner)s::VARCHAR COLLATE "C" OR NOT (EXISTS (SELECT sessions.owner
FROM sessions
WHERE sessions.owner = jobs.owner AND sessions.ttl_s > 0.0)))

-- name: release_job
UPDATE jobs SET owner=%(new_owner)s::VARCHAR COLLATE "C", epoch=(jobs.epoch + 1) WHERE jobs.job_id = %(id)s::VARCHAR COLLATE "C" AND jobs.epoch = %(held_epoch)s::BIGINT

-- name: owner_of
SELECT jobs.owner, jobs.epoch
FROM jobs
WHERE jobs.job_id = %(id)s::VARCHAR COLLATE "C"

-- name: lock_job
SELECT jobs.owner, jobs.epoch
FROM jobs
WHERE jobs.job_id = %(id)s::VARCHAR COLLATE "C" FOR UPDATE

-- name: jobs_of_dead_owners
SELECT jobs.job_id, jobs.owner
FROM jobs
WHERE jobs.state IN ('open', 'running') AND NOT (EXISTS (SELECT sessions.owner
FROM sessions
WHERE sessions.owner = jobs.owner AND sessions.ttl_s > 0.0)) ORDER BY jobs.number
 LIMIT %(count)s::BIGINT OFFSET 0

-- name: unread_of_dead_owners
SELECT jobs.job_id
FROM jobs
WHERE jobs.ended_unix_s > %(after)s AND jobs.inputs_below < 4611686018427387904 AND NOT (EXISTS (SELECT sessions.owner
FROM sessions
WHERE sessions.owner = jobs.owner AND sessions.ttl_s > 0.0)) ORDER BY jobs.number DESC
 LIMIT %(count)s::BIGINT OFFSET 0

-- name: delete_job
DELETE FROM jobs WHERE jobs.number = %(job)s::BIGINT

-- name: get_job
SELECT jobs.state, jobs.reason, jobs.owner, jobs.epoch, jobs.total, jobs.created_unix_s, jobs.ended_unix_s, jobs.nodes, jobs.input_error, jobs.consumed, jobs.retried, jobs.failed, jobs.wasted_s, job_specs.spec
FROM jobs JOIN job_specs ON job_specs.job = jobs.number
WHERE jobs.job_id = %(id)s::VARCHAR COLLATE "C"

-- name: list_jobs
SELECT jobs.state, jobs.reason, jobs.owner, jobs.epoch, jobs.total, jobs.created_unix_s, jobs.ended_unix_s, jobs.nodes, jobs.input_error, jobs.consumed, jobs.retried, jobs.failed, jobs.wasted_s, job_specs.spec
FROM jobs JOIN job_specs ON job_specs.job = jobs.number ORDER BY jobs.number DESC
 LIMIT %(count)s::BIGINT OFFSET 0

-- name: list_active_jobs
SELECT jobs.state, jobs.reason, jobs.owner, jobs.epoch, jobs.total, jobs.created_unix_s, jobs.ended_unix_s, jobs.nodes, jobs.input_error, jobs.consumed, jobs.retried, jobs.failed, jobs.wasted_s, job_specs.spec
FROM jobs JOIN job_specs ON job_specs.job = jobs.number
WHERE jobs.state IN ('open', 'running') ORDER BY jobs.number DESC
 LIMIT %(count)s::BIGINT OFFSET 0

-- name: find_by_id
SELECT jobs.job_id
FROM jobs
WHERE jobs.job_id = %(text)s::VARCHAR COLLATE "C"

-- name: find_by_name
SELECT jobs.job_id
FROM jobs
WHERE jobs.name = %(text)s::VARCHAR COLLATE "C" ORDER BY jobs.number DESC
 LIMIT 1 OFFSET 0

-- name: find_by_prefix
SELECT jobs.job_id
FROM jobs
WHERE jobs.job_id >= %(text)s::VARCHAR COLLATE "C" AND jobs.job_id < %(after)s::VARCHAR COLLATE "C"
 LIMIT 2 OFFSET 0

-- name: put_input
INSERT INTO input_pages (job, start, stop, digest, size, inline, data) VALUES (%(job)s::BIGINT, %(start)s::BIGINT, %(stop)s::BIGINT, %(digest)s::VARCHAR COLLATE "C", %(size)s::BIGINT, %(inline)s, %(data)s) ON CONFLICT DO NOTHING

-- name: put_result
INSERT INTO result_pages (job, start, stop, seq, page_start, failed_count, failed, fault, node, digest, size, inline, data) VALUES (%(job)s::BIGINT, %(start)s::BIGINT, %(stop)s::BIGINT, %(seq)s::BIGINT, %(page_start)s::BIGINT, %(failed_count)s::BIGINT, %(failed)s, %(fault)s, %(node)s::VARCHAR, %(digest)s::VARCHAR COLLATE "C", %(size)s::BIGINT, %(inline)s, %(data)s) ON CONFLICT DO NOTHING

-- name: input_index
SELECT input_pages.start, input_pages.stop, input_pages.digest, input_pages.size, input_pages.inline
FROM input_pages
WHERE input_pages.job = (SELECT jobs.number
FROM jobs
WHERE jobs.job_id = %(id)s::VARCHAR COLLATE "C") ORDER BY input_pages.start

-- name: inputs_stop
SELECT input_pages.stop
FROM input_pages
WHERE input_pages.job = (SELECT jobs.number
FROM jobs
WHERE jobs.job_id = %(id)s::VARCHAR COLLATE "C") ORDER BY input_pages.start DESC
 LIMIT 1 OFFSET 0

-- name: result_index
SELECT result_pages.seq, result_pages.start, result_pages.stop, result_pages.page_start, result_pages.digest, result_pages.size, result_pages.inline, result_pages.failed_count, result_pages.failed, result_pages.fault, result_pages.node
FROM result_pages
WHERE result_pages.job = (SELECT jobs.number
FROM jobs
WHERE jobs.job_id = %(id)s::VARCHAR COLLATE "C") ORDER BY result_pages.seq, result_pages.start

-- name: read_input
SELECT input_pages.start, input_pages.digest, input_pages.size, input_pages.inline, input_pages.data
FROM input_pages
WHERE input_pages.job = (SELECT jobs.number
FROM jobs
WHERE jobs.job_id = %(id)s::VARCHAR COLLATE "C") AND input_pages.start = ANY (ARRAY(SELECT CAST(json_array_elements_text(CAST(%(starts)s::VARCHAR AS JSON)) AS BIGINT)))

-- name: read_results
SELECT result_pages.start, result_pages.digest, result_pages.size, result_pages.inline, result_pages.data
FROM result_pages
WHERE result_pages.job = (SELECT jobs.number
FROM jobs
WHERE jobs.job_id = %(id)s::VARCHAR COLLATE "C") AND result_pages.start = ANY (ARRAY(SELECT CAST(json_array_elements_text(CAST(%(starts)s::VARCHAR AS JSON)) AS BIGINT)))

-- name: drop_inputs
DELETE FROM input_pages WHERE input_pages.job = %(number)s::BIGINT AND input_pages.start < %(below)s::BIGINT AND input_pages.stop <= %(below)s::BIGINT

-- name: results_below
SELECT result_pages.start, result_pages.stop
FROM result_pages
WHERE result_pages.job = %(number)s::BIGINT AND result_pages.start < %(below)s::BIGINT AND result_pages.stop <= %(below)s::BIGINT

-- name: drop_results_below
DELETE FROM result_pages WHERE result_pages.job = %(number)s::BIGINT AND result_pages.start < %(below)s::BIGINT AND result_pages.stop <= %(below)s::BIGINT

-- name: results_below_seq
SELECT result_pages.start, result_pages.stop
FROM result_pages
WHERE result_pages.job = %(number)s::BIGINT AND result_pages.seq < %(below)s::BIGINT

-- name: drop_results_below_seq
DELETE FROM result_pages WHERE result_pages.job = %(number)s::BIGINT AND result_pages.seq < %(below)s::BIGINT

-- name: results_near
SELECT result_pages.start, result_pages.stop, result_pages.failed_count, result_pages.failed
FROM result_pages
WHERE result_pages.job = %(number)s::BIGINT AND result_pages.start >= coalesce((SELECT max(result_pages.start) AS max_1
FROM result_pages
WHERE result_pages.job = %(number)s::BIGINT AND result_pages.start <= %(low)s::BIGINT), %(low)s) AND result_pages.start <= %(high)s::BIGINT ORDER BY result_pages.start

-- name: copy_result
INSERT INTO result_pages (job, start, stop, seq, page_start, failed_count, failed, fault, node, digest, size, inline, data) SELECT result_pages.job, CAST(%(new_start)s AS BIGINT) AS anon_1, CAST(%(new_stop)s AS BIGINT) AS anon_2, result_pages.seq, result_pages.page_start, CAST(%(new_failed_count)s AS BIGINT) AS anon_3, CAST(%(new_failed)s AS BYTEA) AS anon_4, result_pages.fault, result_pages.node, result_pages.digest, result_pages.size, result_pages.inline, result_pages.data
FROM result_pages
WHERE result_pages.job = %(number)s::BIGINT AND result_pages.start = %(old_start)s::BIGINT

-- name: cut_result
UPDATE result_pages SET start=CAST(%(new_start)s AS BIGINT), stop=CAST(%(new_stop)s AS BIGINT), failed_count=CAST(%(new_failed_count)s AS BIGINT), failed=CAST(%(new_failed)s AS BYTEA) WHERE result_pages.job = %(number)s::BIGINT AND result_pages.start = %(old_start)s::BIGINT

-- name: remove_result
DELETE FROM result_pages WHERE result_pages.job = %(number)s::BIGINT AND result_pages.start = %(old_start)s::BIGINT

-- name: done_intervals
SELECT done_intervals.start, done_intervals.stop
FROM done_intervals
WHERE done_intervals.job = (SELECT jobs.number
FROM jobs
WHERE jobs.job_id = %(id)s::VARCHAR COLLATE "C") ORDER BY done_intervals.start

-- name: done_near
SELECT done_intervals.start, done_intervals.stop
FROM done_intervals
WHERE done_intervals.job = %(number)s::BIGINT AND done_intervals.start >= coalesce((SELECT max(done_intervals.start) AS max_1
FROM done_intervals
WHERE done_intervals.job = %(number)s::BIGINT AND done_intervals.start <= %(low)s::BIGINT), %(low)s) AND done_intervals.start <= %(high)s::BIGINT ORDER BY done_intervals.start

-- name: add_done
INSERT INTO done_intervals (job, start, stop) VALUES (%(job)s::BIGINT, %(start)s::BIGINT, %(stop)s::BIGINT)

-- name: remove_done
DELETE FROM done_intervals WHERE done_intervals.job = %(number)s::BIGINT AND done_intervals.start = %(old_start)s::BIGINT

-- name: put_checkpoint
INSERT INTO checkpoints (job, task, digest, size, inline, data) VALUES (%(job)s::BIGINT, %(task)s::BIGINT, %(digest)s::VARCHAR COLLATE "C", %(size)s::BIGINT, %(inline)s, %(data)s) ON CONFLICT (job, task) DO UPDATE SET digest = excluded.digest, size = excluded.size, inline = excluded.inline, data = excluded.data

-- name: drop_checkpoints
DELETE FROM checkpoints WHERE checkpoints.job = %(number)s::BIGINT AND checkpoints.task >= %(low)s::BIGINT AND checkpoints.task < %(high)s::BIGINT

-- name: checkpoints
SELECT checkpoints.task, checkpoints.digest, checkpoints.size, checkpoints.inline, checkpoints.data
FROM checkpoints
WHERE checkpoints.job = (SELECT jobs.number
FROM jobs
WHERE jobs.job_id = %(id)s::VARCHAR COLLATE "C") ORDER BY checkpoints.task

-- name: put_log
INSERT INTO logs (job, seq, line) VALUES (%(job)s::BIGINT, %(seq)s::BIGINT, %(line)s) ON CONFLICT DO NOTHING

-- name: drop_logs
DELETE FROM logs WHERE logs.job = %(number)s::BIGINT AND logs.seq <= (SELECT logs.seq
FROM logs
WHERE logs.job = %(number)s::BIGINT ORDER BY logs.seq DESC
 LIMIT 1 OFFSET %(keep)s::BIGINT)

-- name: read_logs
SELECT logs.seq, logs.line
FROM logs
WHERE logs.job = (SELECT jobs.number
FROM jobs
WHERE jobs.job_id = %(id)s::VARCHAR COLLATE "C") AND logs.seq > %(after)s::BIGINT ORDER BY logs.seq
 LIMIT %(count)s::BIGINT OFFSET 0

-- name: put_node
INSERT INTO nodes (node_id, spec, unix_s, state) VALUES (%(node_id)s::VARCHAR COLLATE "C", %(spec)s, %(unix_s)s, %(state)s::VARCHAR) ON CONFLICT (node_id) DO UPDATE SET spec = excluded.spec, unix_s = excluded.unix_s, state = excluded.state

-- name: renew_session
INSERT INTO sessions (owner, epoch, renewed_unix_s, ttl_s, info) VALUES (%(owner)s::VARCHAR COLLATE "C", 1, CAST(extract(epoch FROM clock_timestamp()) AS DOUBLE PRECISION), %(ttl_s)s, %(info)s::VARCHAR) ON CONFLICT (owner) DO UPDATE SET epoch = (sessions.epoch + CASE WHEN (sessions.ttl_s > 0.0 AND %(anew)s::BIGINT = 0) THEN 0 ELSE 1 END), renewed_unix_s = CASE WHEN (excluded.renewed_unix_s > sessions.renewed_unix_s + 0.001) THEN excluded.renewed_unix_s ELSE sessions.renewed_unix_s + 0.001 END, ttl_s = excluded.ttl_s, info = excluded.info

-- name: session
SELECT sessions.epoch
FROM sessions
WHERE sessions.owner = %(owner)s::VARCHAR COLLATE "C"

-- name: sessions
SELECT sessions.owner, sessions.renewed_unix_s, sessions.ttl_s, sessions.info
FROM sessions
WHERE sessions.ttl_s > 0.0 ORDER BY sessions.owner

-- name: end_session
UPDATE sessions SET ttl_s=-1.0 WHERE sessions.owner = %(ended_owner)s::VARCHAR COLLATE "C"

-- name: end_silent
UPDATE sessions SET ttl_s=-1.0 WHERE sessions.owner = %(ended_owner)s::VARCHAR COLLATE "C" AND sessions.renewed_unix_s = %(stamp)s AND sessions.ttl_s > 0.0

-- name: forget_sessions
DELETE FROM sessions WHERE sessions.renewed_unix_s + %(kept_s)s < CAST(extract(epoch FROM clock_timestamp()) AS DOUBLE PRECISION) AND sessions.ttl_s <= 0.0

-- name: lead
INSERT INTO leaderships (role, owner, term, until_unix_s) VALUES (%(role)s::VARCHAR COLLATE "C", %(owner)s::VARCHAR COLLATE "C", 1, 1.0) ON CONFLICT (role) DO UPDATE SET owner = excluded.owner, term = (leaderships.term + CASE WHEN (leaderships.until_unix_s > 0.0 AND EXISTS (SELECT 1 FROM sessions WHERE sessions.owner = leaderships.owner AND sessions.ttl_s > 0.0)) THEN 0 ELSE 1 END), until_unix_s = excluded.until_unix_s WHERE NOT (leaderships.until_unix_s > 0.0 AND EXISTS (SELECT 1 FROM sessions WHERE sessions.owner = leaderships.owner AND sessions.ttl_s > 0.0)) AND EXISTS (SELECT 1 FROM leaderships AS seen WHERE seen.role = leaderships.role AND seen.owner = leaderships.owner AND seen.term = leaderships.term) OR leaderships.owner = excluded.owner

-- name: lead_alone
INSERT INTO leaderships (role, owner, term, until_unix_s) VALUES (%(role)s::VARCHAR COLLATE "C", %(owner)s::VARCHAR COLLATE "C", 1, 1.0) ON CONFLICT (role) DO UPDATE SET owner = excluded.owner, term = (leaderships.term + 1), until_unix_s = excluded.until_unix_s

-- name: leader
SELECT leaderships.owner, leaderships.term
FROM leaderships
WHERE leaderships.role = %(role)s::VARCHAR COLLATE "C"

-- name: end_leadership
UPDATE leaderships SET until_unix_s=0.0 WHERE leaderships.owner = %(ended_owner)s::VARCHAR COLLATE "C"

-- name: list_nodes
SELECT nodes.spec, nodes.unix_s, nodes.state
FROM nodes ORDER BY nodes.node_id

-- name: keep_session
WITH renewed AS
(INSERT INTO sessions (owner, epoch, renewed_unix_s, ttl_s, info) VALUES (%(owner)s::VARCHAR COLLATE "C", 1, CAST(extract(epoch FROM clock_timestamp()) AS DOUBLE PRECISION), %(ttl_s)s, %(info)s::VARCHAR) ON CONFLICT (owner) DO UPDATE SET epoch = (sessions.epoch + CASE WHEN (sessions.ttl_s > 0.0 AND %(anew)s::BIGINT = 0) THEN 0 ELSE 1 END), renewed_unix_s = CASE WHEN (excluded.renewed_unix_s > sessions.renewed_unix_s + 0.001) THEN excluded.renewed_unix_s ELSE sessions.renewed_unix_s + 0.001 END, ttl_s = excluded.ttl_s, info = excluded.info RETURNING sessions.epoch),
led AS
(INSERT INTO leaderships (role, owner, term, until_unix_s) SELECT CAST(%(role)s::VARCHAR AS VARCHAR) AS anon_3, CAST(%(owner)s::VARCHAR AS VARCHAR) AS anon_4, CAST(1 AS BIGINT) AS "1", CAST(1.0 AS FLOAT) AS "1.0"
WHERE NOT (EXISTS (SELECT leaderships.owner
FROM leaderships
WHERE leaderships.role = %(role)s::VARCHAR COLLATE "C" AND leaderships.owner != %(owner)s::VARCHAR AND leaderships.until_unix_s > 0.0 AND EXISTS (SELECT 1 FROM sessions WHERE sessions.owner = leaderships.owner AND sessions.ttl_s > 0.0))) ON CONFLICT (role) DO UPDATE SET owner = excluded.owner, term = (leaderships.term + CASE WHEN (leaderships.until_unix_s > 0.0 AND EXISTS (SELECT 1 FROM sessions WHERE sessions.owner = leaderships.owner AND sessions.ttl_s > 0.0)) THEN 0 ELSE 1 END), until_unix_s = excluded.until_unix_s WHERE NOT (leaderships.until_unix_s > 0.0 AND EXISTS (SELECT 1 FROM sessions WHERE sessions.owner = leaderships.owner AND sessions.ttl_s > 0.0)) AND EXISTS (SELECT 1 FROM leaderships AS seen WHERE seen.role = leaderships.role AND seen.owner = leaderships.owner AND seen.term = leaderships.term) OR leaderships.owner = excluded.owner RETURNING leaderships.term)
 SELECT (SELECT renewed.epoch
FROM renewed) AS anon_1, (SELECT led.term
FROM led) AS anon_2, array((SELECT jobs.job_id
FROM jobs
WHERE jobs.state IN ('open', 'running') AND NOT (EXISTS (SELECT sessions.owner
FROM sessions
WHERE sessions.owner = jobs.owner AND sessions.ttl_s > 0.0)) AND jobs.owner != %(owner)s::VARCHAR ORDER BY jobs.number
 LIMIT %(count)s::BIGINT)) AS array_1, array((SELECT jobs.owner
FROM jobs
WHERE jobs.state IN ('open', 'running') AND NOT (EXISTS (SELECT sessions.owner
FROM sessions
WHERE sessions.owner = jobs.owner AND sessions.ttl_s > 0.0)) AND jobs.owner != %(owner)s::VARCHAR ORDER BY jobs.number
 LIMIT %(count)s::BIGINT)) AS array_2, array((SELECT sessions.owner
FROM sessions
WHERE sessions.ttl_s > 0.0 AND sessions.owner != %(owner)s::VARCHAR ORDER BY sessions.owner)) AS array_3, array((SELECT sessions.renewed_unix_s
FROM sessions
WHERE sessions.ttl_s > 0.0 AND sessions.owner != %(owner)s::VARCHAR ORDER BY sessions.owner)) AS array_4, array((SELECT sessions.ttl_s
FROM sessions
WHERE sessions.ttl_s > 0.0 AND sessions.owner != %(owner)s::VARCHAR ORDER BY sessions.owner)) AS array_5, array((SELECT sessions.info
FROM sessions
WHERE sessions.ttl_s > 0.0 AND sessions.owner != %(owner)s::VARCHAR ORDER BY sessions.owner)) AS array_6
