-- Where a label leads: docs/redis.md, "For routers". A route is kept for 2 s,
-- that there is none for 1 s; one worker reads a label at a time. While Redis
-- is away, routes that were known go on.
local hosts = require "iottunnel.hosts"
local nodes = require "iottunnel.nodes"
local redis = require "iottunnel.redis"
local semaphore = require "ngx.semaphore"

local concat, floor = table.concat, math.floor
local pcall, tonumber, tostring, type = pcall, tonumber, tostring, type

local _M = {}

-- How long what was read counts, in seconds: a route, that a device is offline,
-- that it is but is expected back, and that nobody has a label.
local ROUTE, OFFLINE, EXPECTED, UNKNOWN = 2, 1, 0.2, 1

-- How long a route goes on that Redis knows nothing of any more, in seconds: it may
-- have lost its data, and the edges write theirs again within this time. Where a
-- device has lost its label, the node that had it says so, and it ends at once.
local LOST = 15

-- How long an old route is kept for the time when Redis is away, in seconds.
local STALE = 3600

-- How long after an unclean end a device is expected back, in seconds: agents
-- come back within their largest backoff.
local RECONNECT = 30

-- How long it is known when a node was first found to be gone, in seconds.
local GONE = 86400

-- How many labels per second may turn out to be nobody's: of those that one address
-- asks for, and of all. Beyond, only labels that are known are looked up.
local UNKNOWN_EACH, UNKNOWN_RATE = 100, 10000

-- How often to look whether another worker has read a label, in seconds.
local POLL = 0.003

local config, state, cache, unknown -- by init
local flights = {} -- look-ups under way in this worker, by label
local decoded, decoded_count = {}, 0 -- routes as tables, by their text
local DECODED_MOST = 4096


function _M.init(c, dictionaries)
    config = c
    state, cache, unknown = dictionaries.state, dictionaries.routes,
        dictionaries.unknown
end


-- A route in the dictionary: until when it counts, and the rest by tabs.
local function decode(text)
    local route = decoded[text]
    if route then
        return route
    end
    local until_ms, kind, device, a, b, c, read_s, gen = text:match("^(%d+)\t(%a+)"
        .. ("\t([^\t]*)"):rep(4) .. "\t(%d+)\t(%d*)$")
    if not kind then
        return nil
    end
    if kind == "on" then
        local host, port = hosts.split(c)
        route = { online = true, device = device, node = a, epoch = b,
            internal = c, host = host and hosts.literal(host), port = port,
            read_s = tonumber(read_s), gen = gen }
    else
        route = { online = false, device = device, seen = tonumber(a),
            expected = b == "1" }
    end
    route.until_ms = tonumber(until_ms)
    if decoded_count >= DECODED_MOST then
        decoded, decoded_count = {}, 0
    end
    decoded[text], decoded_count = route, decoded_count + 1
    return route
end


-- encode writes a route that counts for some seconds. read_s is when Redis said
-- so, in Unix seconds; now, if it is nil.
local function encode(seconds, kind, device, a, b, c, gen, read_s)
    return concat({ floor((ngx.now() + seconds) * 1000), kind, device, a, b, c,
        read_s or floor(ngx.now()), gen and gen:match("^%d+$") or "" }, "\t")
end


-- cached returns what is known of a label, and whether it still counts.
local function cached(label)
    local text = cache:get(label)
    if text then
        local route = decode(text)
        if route then
            return route, route.until_ms > ngx.now() * 1000
        end
    end
    if unknown:get(label) then
        return { unknown = true }, true
    end
    return nil, false
end


-- keep writes down what was read of a label.
local function keep(label, text)
    local ok, err = cache:set(label, text, STALE)
    if not ok and state:add("routes:full", true, 60) then
        ngx.log(ngx.ERR, "iottunnel: lua_shared_dict iottunnel_routes: ", err)
    end
    unknown:delete(label)
    return decode(text)
end


-- clean reports whether fields of Redis can be kept: what an edge writes can.
local function clean(...)
    return not concat({ ... }, " "):find("[\t\r\n]")
end


local function refused(reply)
    return type(reply) == "table" and reply.refused
end


-- counters names what counts the unknown labels of this second: those of the
-- visitor's address, of IPv6 its network, and those of all.
local function counters()
    local address = ngx.var.binary_remote_addr or ""
    if #address > 8 then
        address = address:sub(1, 8) -- whoever has one has the whole /64
    end
    local second = ":" .. floor(ngx.now())
    return "unknown:" .. address .. second, "unknown" .. second
end


-- nobodys notes that nobody has a label.
local function nobodys(label)
    cache:delete(label)
    unknown:set(label, true, UNKNOWN)
    local own, all = counters()
    unknown:incr(own, 1, 0, 2)
    state:incr(all, 1, 0, 2)
    return { unknown = true }
end


-- offline finds out when a device was last there, and whether it is expected
-- back. A user of Redis who may not read that gets a plain page.
local function offline(label, device, lost)
    local replies, err = redis.exec {
        { "TIME" },
        { "HMGET", config.prefix .. "device:{" .. device .. "}", "seen_ms", "why",
            "label", "until_ms" },
    }
    local seen, expected = "", lost and "1" or "0"
    if replies and not refused(replies[1]) and not refused(replies[2]) then
        local f = replies[2]
        local seen_ms, until_ms = tonumber(f[1] or nil), tonumber(f[4] or nil)
        local why = f[2] or ""
        if f[3] ~= label or until_ms and until_ms < replies[1][1] * 1000 then
            return nobodys(label) -- the route has outlived its lease
        end
        if seen_ms then
            local age = tonumber(replies[1][1]) - seen_ms / 1000
            seen = tostring(floor(seen_ms / 1000))
            if age < RECONNECT and why:sub(1, 15) == "connection lost" then
                expected = "1"
            end
        end
    elseif state:add("device:refused", true, 3600) then
        ngx.log(ngx.WARN, "iottunnel: redis: when a device was last seen cannot be "
            .. "read: ", err or refused(replies[1]) or refused(replies[2]))
    end
    return keep(label, encode(expected == "1" and EXPECTED or OFFLINE, "off",
        device, seen, expected, ""))
end


-- just_lost reports whether it is not long ago that a node was first found to be
-- gone: its devices come back to others within their largest backoff, or not at all.
local function just_lost(node, epoch)
    local key, now = "gone:" .. node .. ":" .. (epoch or ""), ngx.now()
    if state:add(key, now, GONE) then
        return true
    end
    return now - (state:get(key) or now) < RECONNECT
end


-- flooded reports whether so many labels have turned out to be nobody's in this
-- second that others must not be looked up for this visitor.
local function flooded()
    local own, all = counters()
    return (unknown:get(own) or 0) >= UNKNOWN_EACH
        or (state:get(all) or 0) >= UNKNOWN_RATE
end


-- read asks Redis for a label. old is what is known of it; again says that its node
-- has denied it.
local function read(label, old, again)
    local commands = {
        { "HMGET", config.prefix .. "lease:{" .. label .. "}", "device", "node",
            "epoch", "http", "gen" },
    }
    local guess = old and old.node
    if guess and nodes.lives(guess, old.epoch) == nil then
        commands[2] = { "HMGET", config.prefix .. "node:{" .. guess .. "}",
            "epoch" }
    end
    local replies, err = redis.exec(commands)
    if not replies then
        return nil, err
    end
    local lease = replies[1]
    if refused(lease) then
        return nil, "HMGET: " .. lease.refused
    end
    local device, node, epoch, http = lease[1], lease[2], lease[3], lease[4]
    if not device and old and old.online and not again
        and ngx.now() - old.read_s < LOST then
        return keep(label, encode(OFFLINE, "on", old.device, old.node, old.epoch,
            old.internal, old.gen, old.read_s))
    elseif not device or not clean(device, node or "", epoch or "", http or "") then
        return nobodys(label)
    end
    if not node or node == "" then
        return offline(label, device, false)
    end
    local lives = nodes.lives(node, epoch)
    if lives == nil then
        local reply = commands[2] and guess == node and replies[2]
        if not reply then
            replies, err = redis.exec {
                { "HMGET", config.prefix .. "node:{" .. node .. "}", "epoch" },
            }
            if not replies then
                return nil, err
            end
            reply = replies[1]
        end
        lives = not refused(reply) and reply[1] == epoch
    end
    if not lives then
        return offline(label, device, just_lost(node, epoch))
    end
    return keep(label, encode(ROUTE, "on", device, node, epoch or "", http or "",
        lease[5] or nil))
end


-- read_alone is read, if no other worker reads the label; else what that one
-- has found.
local function read_alone(label, old, again)
    local lock = "reading:" .. label
    local timeout = 2 * config.redis_timeout_ms / 1000
    local deadline, began = ngx.now() + timeout, ngx.now()
    while not state:add(lock, true, timeout) do
        ngx.sleep(POLL)
        local route, fresh = cached(label)
        if fresh and (not again or route ~= old) then
            return route
        end
        if ngx.now() > deadline then
            return nil, "another worker reads this label, and does not end"
        end
    end
    local route, fresh = cached(label)
    if began ~= ngx.now() and fresh and (not again or route ~= old) then
        state:delete(lock) -- somebody has read it while this one waited
        return route
    end
    local ok, err
    ok, route, err = pcall(read, label, old, again)
    state:delete(lock)
    if not ok then
        return nil, route
    end
    return route, err
end


-- fly is read_alone, once at a time in this worker: who comes meanwhile gets
-- the same answer.
local function fly(label, old, again)
    local flight = flights[label]
    if flight then
        flight.waiting = flight.waiting + 1
        local ok = flight.landed:wait(3 * config.redis_timeout_ms / 1000 + 1)
        if not ok then
            flight.waiting = flight.waiting - 1
            return nil, "the look-up of this label does not end"
        end
        return flight.route, flight.err
    end
    flight = { landed = semaphore.new(0), waiting = 0 }
    flights[label] = flight
    local ok, route, err = pcall(read_alone, label, old, again)
    flights[label] = nil
    if not ok then
        route, err = nil, route
    end
    flight.route, flight.err = route, err
    if flight.waiting > 0 then
        flight.landed:post(flight.waiting)
    end
    return route, err
end


-- find returns the route of a label: {unknown = true}, {online = false, device,
-- seen (Unix seconds, or nil), expected}, or {online = true, device, node,
-- epoch, host, port}. nil and why when Redis cannot tell and nothing is known.
-- With again what is known does not count.
function _M.find(label, again)
    local route, fresh = cached(label)
    if fresh and not again then
        return route
    end
    if not route and flooded() then
        if state:add("unknown:flood", true, 60) then
            ngx.log(ngx.WARN, "iottunnel: many labels that nobody has are asked "
                .. "for: those that are not known have to wait")
        end
        return nil, "too many unknown labels"
    end
    local found, err = fly(label, route, again)
    if not found and route and route.online then
        return route -- Redis is away: what was known is better than nothing
    end
    return found, err
end


-- known returns the route of a label as it was last read, or nil.
function _M.known(label)
    return (cached(label))
end


-- forget has the next visitor of a label read it anew; what was known stays for
-- the time when Redis is away.
function _M.forget(label)
    local text = cache:get(label)
    if text then
        cache:set(label, (text:gsub("^%d+", "0", 1)), STALE)
    end
    unknown:delete(label)
end


return _M
