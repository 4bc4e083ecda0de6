-- beat is the heartbeat of a node.
-- KEYS: node:{ID}
-- ARGV: epoch, ttl_ms, url, internal, clients, capacity, draining, restored
-- Reply: 0 another epoch is live; 1 done; 2 done, and the node was not there.
local epoch = redis.call('HGET', KEYS[1], 'epoch')
if epoch and epoch ~= ARGV[1] then
    return 0
end
redis.call('HSET', KEYS[1], 'epoch', ARGV[1], 'url', ARGV[3], 'internal', ARGV[4], 'clients', ARGV[5],
    'capacity', ARGV[6], 'draining', ARGV[7], 'restored', ARGV[8])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return epoch and 1 or 2
