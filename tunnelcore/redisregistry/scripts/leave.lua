-- leave ends the life of a node, unless another epoch has the id by now.
-- KEYS: node:{ID}
-- ARGV: epoch
-- Reply: 1 done, 0 not.
if redis.call('HGET', KEYS[1], 'epoch') ~= ARGV[1] then
    return 0
end
redis.call('DEL', KEYS[1])
return 1
