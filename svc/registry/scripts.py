"""The scripts that Redis runs, each as one step that nothing comes between.

Time is Redis' own (`TIME`): the clocks of the processes play no part. Every script answers with a
list whose first entry says how it went; none raises.

Fields of a session's hash: root, state (live, finished, deleted), owner, address, epoch,
expires_ms, next (units published), pts_s, server, unsure. `server` is the run id of the Redis that
last knew for certain who holds the lease. Another run id, or none, means that Redis was restarted
or emptied or that a replica took over, and may have forgotten a lease: then nobody gets one before
any forgotten one must have run out (`unsure`).
"""

from __future__ import annotations

_PRELUDE = """
local function now_ms()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end
local function server_id()
  return string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
end
local function read()
  local names = {'root', 'state', 'owner', 'address', 'epoch', 'expires_ms', 'next', 'pts_s',
                 'server', 'unsure'}
  local values = redis.call('HMGET', KEYS[1], unpack(names))
  local s = {}
  for i, name in ipairs(names) do s[name] = values[i] or '' end
  for _, name in ipairs({'epoch', 'expires_ms', 'next'}) do s[name] = tonumber(s[name]) or 0 end
  s.known = values[1] ~= false
  return s
end
"""

ACQUIRE = (
    _PRELUDE
    + """
local owner, address, root = ARGV[1], ARGV[2], ARGV[3]
local lease_ms, floor_epoch = tonumber(ARGV[4]), tonumber(ARGV[5])
local s, now, server = read(), now_ms(), server_id()
if s.state == 'deleted' then return {'deleted'} end
if s.known and s.root ~= root then return {'elsewhere', s.root} end
if s.server ~= server then
  s.expires_ms, s.unsure = now + lease_ms, '1'
  redis.call('HSET', KEYS[1], 'root', root, 'server', server, 'unsure', '1',
             'expires_ms', s.expires_ms)
end
if s.expires_ms > now and (s.unsure == '1' or (s.owner ~= '' and s.owner ~= owner)) then
  return {'held', s.owner, s.address, s.expires_ms - now}
end
local epoch = math.max(s.epoch, floor_epoch) + 1
redis.call('HSET', KEYS[1], 'root', root, 'owner', owner, 'address', address, 'epoch', epoch,
           'expires_ms', now + lease_ms, 'unsure', '')
if s.state == '' then redis.call('HSET', KEYS[1], 'state', 'live') end
return {'granted', epoch, s.next}
"""
)

# A holder whose lease has not run out by its own clock may put it back into a Redis that has
# forgotten it: while its lease runs, nobody else can have been given one.
RENEW = (
    _PRELUDE
    + """
local owner, address, root = ARGV[1], ARGV[2], ARGV[3]
local lease_ms, epoch = tonumber(ARGV[4]), tonumber(ARGV[5])
local s, now = read(), now_ms()
if s.state == 'deleted' then return {'lost', s.epoch} end
if s.known and s.root ~= root then return {'lost', s.epoch} end
if s.epoch > epoch or (s.epoch == epoch and s.owner ~= owner) then return {'lost', s.epoch} end
if s.owner ~= '' and s.owner ~= owner and s.unsure ~= '1' and s.expires_ms > now then
  return {'lost', s.epoch}
end
redis.call('HSET', KEYS[1], 'root', root, 'owner', owner, 'address', address, 'epoch', epoch,
           'expires_ms', now + lease_ms, 'server', server_id(), 'unsure', '')
if s.state == '' then redis.call('HSET', KEYS[1], 'state', 'live') end
return {'renewed', s.next}
"""
)

RELEASE = (
    _PRELUDE
    + """
local s = read()
if s.owner ~= ARGV[1] or s.epoch ~= tonumber(ARGV[2]) then return {'lost', s.epoch} end
redis.call('HSET', KEYS[1], 'owner', '', 'address', '', 'expires_ms', 0)
return {'released'}
"""
)

PUBLISH = (
    _PRELUDE
    + """
local owner, epoch, lease_ms = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local start, stop, pts_s, state = tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6], ARGV[7]
local s = read()
if s.state == 'deleted' or s.epoch ~= epoch or s.owner ~= owner then return {'lost', s.epoch} end
if state == '' then state = s.state end
if stop <= s.next and state == s.state then return {'published', s.next} end
if start > s.next then return {'gap', s.next} end
local next_unit = math.max(stop, s.next)
redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[8], '*', 'next', next_unit, 'pts_s', pts_s,
           'epoch', epoch, 'state', state)
redis.call('HSET', KEYS[1], 'next', next_unit, 'pts_s', pts_s, 'state', state,
           'expires_ms', now_ms() + lease_ms)
return {'published', next_unit}
"""
)

# Before a session's folder is made: the name belongs to the root that asks first.
RESERVE = (
    _PRELUDE
    + """
local s = read()
if s.known and s.root ~= ARGV[1] and s.state ~= 'deleted' then return {'elsewhere', s.root} end
if s.known and s.state ~= 'deleted' then return {'reserved'} end
redis.call('DEL', KEYS[2])
redis.call('PERSIST', KEYS[1])
redis.call('HSET', KEYS[1], 'root', ARGV[1], 'state', 'live', 'owner', '', 'address', '',
           'expires_ms', 0, 'next', 0, 'pts_s', '', 'server', '', 'unsure', '')
return {'reserved'}
"""
)

# Right after its folder was made: nobody can hold a lease on what was not there.
CREATED = (
    _PRELUDE
    + """
local s = read()
if s.root == ARGV[1] and s.owner == '' then
  redis.call('DEL', KEYS[2])
  redis.call('HSET', KEYS[1], 'server', server_id(), 'unsure', '', 'expires_ms', 0,
             'state', 'live', 'next', 0, 'pts_s', '')
end
return {'noted'}
"""
)

# What the files say. Who holds the lease is left alone: of that, files know nothing.
RESTORE = (
    _PRELUDE
    + """
local root, state, next_unit, pts_s = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
local s = read()
if s.state == 'deleted' then return {'deleted'} end
if s.known and s.root ~= root then return {'elsewhere', s.root} end
redis.call('HSET', KEYS[1], 'root', root)
if s.state ~= 'finished' then redis.call('HSET', KEYS[1], 'state', state) end
if not s.known or next_unit > s.next then
  redis.call('HSET', KEYS[1], 'next', next_unit, 'pts_s', pts_s)
end
return {'restored', math.max(next_unit, s.next)}
"""
)

DELETE = (
    _PRELUDE
    + """
local s = read()
if s.owner ~= ARGV[1] or s.epoch ~= tonumber(ARGV[2]) then return {'lost', s.epoch} end
redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[4], '*', 'next', s.next, 'pts_s', s.pts_s,
           'epoch', s.epoch, 'state', 'deleted')
redis.call('HSET', KEYS[1], 'state', 'deleted', 'owner', '', 'address', '', 'expires_ms', 0)
redis.call('PEXPIRE', KEYS[1], ARGV[3])
redis.call('PEXPIRE', KEYS[2], ARGV[3])
return {'deleted'}
"""
)

# The hash and the end of its stream, both of one moment.
LOOKUP = (
    _PRELUDE
    + """
local s = read()
if not s.known then return {'unknown'} end
local left_ms = s.expires_ms - now_ms()
if s.owner == '' or left_ms < 0 then left_ms = 0 end
local last = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)
return {'found', s.root, s.state, s.owner, s.address, s.epoch, left_ms, s.next, s.pts_s,
        last[1] and last[1][1] or '0-0'}
"""
)

# Tells whether the process was listed before: if it was and is not, Redis has lost its memory.
HEARTBEAT = (
    _PRELUDE
    + """
local now = now_ms()
local entries = redis.call('HGETALL', KEYS[1])
for i = 1, #entries, 2 do
  if tonumber(string.match(entries[i + 1], '^%d+')) < now then
    redis.call('HDEL', KEYS[1], entries[i])
  end
end
local known = redis.call('HEXISTS', KEYS[1], ARGV[1])
redis.call('HSET', KEYS[1], ARGV[1], string.format('%.0f', now + tonumber(ARGV[2])) .. ARGV[3])
return {'noted', known}
"""
)

PROCESSES = (
    _PRELUDE
    + """
local now, found = now_ms(), {}
local entries = redis.call('HGETALL', KEYS[1])
for i = 1, #entries, 2 do
  local expires, content = string.match(entries[i + 1], '^(%d+)(.*)$')
  if tonumber(expires) >= now then table.insert(found, content) end
end
return {'found', found}
"""
)

LEAVE = """
return {'left', redis.call('HDEL', KEYS[1], ARGV[1])}
"""
