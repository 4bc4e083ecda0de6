-- beat is the heartbeat of a node.
-- KEYS: node:{ID}
-- ARGV: epoch, ttl_ms, url, internal, clients, capacity, draining, restored, op
--       (new for each heartbeat: a repeated call finds that it was carried out)
-- Reply: 0 another epoch is live; 1 done; 2 done, and the node was not there.
local r = redis.call('HMGET', KEYS[1], 'epoch', 'op')
local epoch, op = r[1], ARGV[9]
if epoch and epoch ~= ARGV[1] then
    return 0
end
local was = epoch and 1 or 2
if r[2] == op .. ' new' then
    was = 2
end
if was == 2 then
    op = op .. ' new'
end
redis.call('HSET', KEYS[1], 'epoch', ARGV[1], 'url', ARGV[3], 'internal', ARGV[4], 'clients', ARGV[5],
    'capacity', ARGV[6], 'draining', ARGV[7], 'restored', ARGV[8], 'op', op)
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return was
