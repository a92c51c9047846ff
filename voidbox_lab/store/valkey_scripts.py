"""What the Valkey store changes, as Lua scripts: each runs as a whole or not at all
(https://valkey.io/topics/eval-intro/). Not for reading, except for listing, which looks at two sets at once.

Each can be sent again when an answer was lost: `CREATE` and `APPEND` know their own token, and the others come
to the same a second time.
"""

from __future__ import annotations

CREATE = """
-- KEYS: run, order, runs, open, state   ARGV: id, created_at, spec, record, state, token
local made = redis.call('HGET', KEYS[1], 'made')
if made then
  return made == ARGV[6] and 'done' or 'taken'
end
-- Equal times are told apart by the order of creation: members of equal score sort by their bytes.
local place = string.format('%016d', redis.call('INCR', KEYS[2])) .. ':' .. ARGV[1]
redis.call('HSET', KEYS[1], 'spec', ARGV[3], 'record', ARGV[4], 'state', ARGV[5], 'at', ARGV[2], 'made', ARGV[6],
  'place', place, 'seq', '0', 'ended', '0', 'batch', '')
for i = 3, 5 do
  redis.call('ZADD', KEYS[i], ARGV[2], place)
end
return 'done'
"""

APPEND = """
-- KEYS: run, events, open, state before, state after   ARGV: seq, token, record or '', state, ended, line...
local run = redis.call('HMGET', KEYS[1], 'seq', 'batch', 'place', 'at')
if not run[1] then
  return 'unknown'
end
if run[2] == ARGV[2] then
  return 'done'
end
if run[1] ~= ARGV[1] then
  return 'moved'
end
local seq = tonumber(run[1])
for i = 6, #ARGV do
  seq = seq + 1
  redis.call('XADD', KEYS[2], string.format('%d-0', seq), 'e', ARGV[i])
end
redis.call('HSET', KEYS[1], 'seq', string.format('%d', seq), 'batch', ARGV[2])
if ARGV[3] ~= '' then
  redis.call('HSET', KEYS[1], 'record', ARGV[3], 'state', ARGV[4], 'ended', ARGV[5])
  redis.call('ZREM', KEYS[4], run[3])
  redis.call('ZADD', KEYS[5], run[4], run[3])
  if ARGV[5] == '1' then
    redis.call('ZREM', KEYS[3], run[3])
  else
    redis.call('ZADD', KEYS[3], run[4], run[3])
  end
end
return 'done'
"""

DELETE = """
-- KEYS: run, events, keys, cache, runs, open   ARGV: id, force, prefix of the states' keys
local run = redis.call('HMGET', KEYS[1], 'place', 'ended', 'state')
if not run[1] then
  return 'unknown'
end
if run[2] ~= '1' and ARGV[2] ~= '1' then
  return 'unended'
end
local owner = ARGV[1] .. ' '
for _, key in ipairs(redis.call('SMEMBERS', KEYS[3])) do
  local found = redis.call('HGET', KEYS[4], key)
  if found and string.sub(found, 1, #owner) == owner then
    redis.call('HDEL', KEYS[4], key)
  end
end
redis.call('ZREM', KEYS[5], run[1])
redis.call('ZREM', KEYS[6], run[1])
redis.call('ZREM', ARGV[3] .. run[3], run[1])
redis.call('UNLINK', KEYS[1], KEYS[2], KEYS[3])
return 'done'
"""

REMEMBER = """
-- KEYS: run, keys, cache   ARGV: key, value
if redis.call('EXISTS', KEYS[1]) == 0 then
  return 'unknown'
end
redis.call('HSET', KEYS[3], ARGV[1], ARGV[2])
redis.call('SADD', KEYS[2], ARGV[1])
return 'done'
"""

LIST = """
-- KEYS: set to list, runs, open, run before which   ARGV: limit, before?, unfinished?
local max, before = '+inf', nil
if ARGV[2] == '1' then
  before = redis.call('HGET', KEYS[4], 'place')
  if not before then
    return {'?'}
  end
  max = redis.call('ZSCORE', KEYS[2], before)
end
local out, offset, limit = {}, 0, tonumber(ARGV[1])
while #out < limit do
  local got = redis.call('ZREVRANGEBYSCORE', KEYS[1], max, '-inf', 'WITHSCORES', 'LIMIT', offset, 1000)
  for i = 1, #got, 2 do
    local place = got[i]
    local newer = before and got[i + 1] == max and place >= before
    if not newer and #out < limit and (ARGV[3] == '0' or redis.call('ZSCORE', KEYS[3], place)) then
      out[#out + 1] = string.sub(place, 18)
    end
  end
  if #got < 2000 then
    break
  end
  offset = offset + 1000
end
return out
"""
