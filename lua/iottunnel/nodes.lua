-- The live nodes, read in the background once a second by one of the workers:
-- which epoch of a node lives, where its internal address is, and how much it
-- has to do.
local hosts = require "iottunnel.hosts"
local redis = require "iottunnel.redis"

local concat, random = table.concat, math.random
local ipairs, pcall, tonumber = ipairs, pcall, tonumber

local _M = {}

-- How often nodes are read, and how old what is known may be for a route to
-- rely on it, in seconds (docs/redis.md: a second).
local PERIOD, FRESH = 0.7, 1

-- Nodes that have been gone for long stay in the list for a day: this many of
-- the latest are looked at.
local MOST = 128

-- After how long a name that has no address is looked up again, in seconds.
local LOOK_AGAIN = 30

-- How long a node that did not take a connection is passed over, in seconds.
local DOWN = 1

local config, state -- by init
local known = { text = nil, at = 0, list = {}, by_id = {} } -- decoded, per worker
local addresses = {} -- of nodes whose internal address is a name
local given = {} -- agents passed to a node since its number was read, by id
local started = false


function _M.init(c, dictionary)
    config, state = c, dictionary
end


-- resolve returns the IP address of a node. A name is looked up once per epoch, and
-- again after a while where that has failed.
local function resolve(id, epoch, internal)
    local host = hosts.split(internal)
    local ip = host and hosts.literal(host)
    if ip then
        return ip
    end
    local key = epoch .. " " .. internal
    local looked = addresses[key]
    if not looked or not looked.ip and ngx.now() > looked.again then
        local err = "it says none; set `internal` in its `node` block"
        if host then
            ip, err = hosts.address(host)
        end
        if not ip then
            ngx.log(ngx.ERR, "iottunnel: node ", id, " has no internal address ",
                "that can be used: ", internal, ": ", err)
        end
        looked = { ip = ip, again = ngx.now() + LOOK_AGAIN }
        addresses[key] = looked
    end
    return looked.ip
end


-- decode_line reads one node of what refresh has written.
local function decode_line(line)
    local id, epoch, internal, clients, capacity, draining =
        line:match("^([^\t]*)\t([^\t]*)\t([^\t]*)\t(%d+)\t(%d+)\t(%d+)$")
    if not id then
        return nil
    end
    local _, port = hosts.split(internal)
    return {
        id = id, epoch = epoch, internal = internal, port = port,
        host = resolve(id, epoch, internal),
        clients = tonumber(clients), capacity = tonumber(capacity),
        draining = draining ~= "0",
    }
end


-- decode makes a list of what refresh has written.
local function decode(text)
    local list, by_id, live = {}, {}, {}
    local at, lines = text:match("^([^\n]*)\n(.*)$")
    for line in lines:gmatch("[^\n]+") do
        local node = decode_line(line)
        if node then
            list[#list + 1], by_id[node.id] = node, node
            local key = node.epoch .. " " .. node.internal
            live[key] = addresses[key]
            local before = known.by_id[node.id]
            if before and before.clients ~= node.clients then
                given[node.id] = nil
            end
        end
    end
    addresses = live -- those of nodes that are gone are forgotten
    known = { text = text, at = tonumber(at), list = list, by_id = by_id }
end


local function current()
    local text = state:get("nodes")
    if text and text ~= known.text then
        decode(text)
    end
    return known
end


local function number(field)
    return field and field:match("^%d+$") or "0"
end


-- refresh reads the nodes; nil and why when that cannot be done.
local function refresh()
    local replies, err = redis.exec {
        { "ZRANGE", config.prefix .. "nodes", "0", tostring(MOST - 1), "REV" },
    }
    if not replies then
        return nil, err
    end
    local ids, commands, lines = replies[1], {}, { ("%.3f"):format(ngx.now()) }
    if ids.refused then
        return nil, "ZRANGE: " .. ids.refused
    end
    for i, id in ipairs(ids) do
        commands[i] = { "HMGET", config.prefix .. "node:{" .. id .. "}", "epoch",
            "internal", "clients", "capacity", "draining" }
    end
    if #commands > 0 then
        replies, err = redis.exec(commands)
        if not replies then
            return nil, err
        end
    end
    for i, id in ipairs(ids) do
        local f = replies[i]
        if f.refused then
            return nil, "HMGET: " .. f.refused
        end
        -- A key that has ended has no epoch. Whatever would break a line is not
        -- ours to repair.
        if f[1] and not (id .. f[1] .. (f[2] or "")):find("[\t\n]") then
            lines[#lines + 1] = concat({ id, f[1], f[2] or "", number(f[3]),
                number(f[4]), number(f[5]) }, "\t")
        end
    end
    local ok
    ok, err = state:set("nodes", concat(lines, "\n") .. "\n")
    if not ok then
        return nil, "lua_shared_dict iottunnel_state: " .. err
    end
    return true
end


-- refresh_once lets one worker at a time refresh, and no more often than nodes
-- are to be read.
local function refresh_once()
    if not state:add("nodes:turn", true, PERIOD) then
        return
    end
    local ok, err = refresh()
    if ok then
        if state:get("nodes:failed") then
            state:delete("nodes:failed")
        end
    elseif state:add("nodes:failed", true, 60) then
        ngx.log(ngx.WARN, "iottunnel: live nodes cannot be read: ", err)
    end
end


local function tick(premature)
    if premature then
        return
    end
    local ok, err = pcall(refresh_once)
    if not ok then
        ngx.log(ngx.ERR, "iottunnel: reading the nodes: ", err)
    end
    ok, err = ngx.timer.at(PERIOD, tick)
    if not ok then
        started = false -- the next request begins anew
        if err ~= "process exiting" then
            ngx.log(ngx.ERR, "iottunnel: no timer: ", err)
        end
    end
end


-- start has this worker look after the nodes from now on.
function _M.start()
    if not started then
        started = true
        refresh_once() -- who asks first has something to see
        if not ngx.timer.at(PERIOD, tick) then
            started = false
        end
    end
end


-- find returns a node, as last read; nil when there is none of that id.
function _M.find(id)
    local node = current().by_id[id]
    if not node then
        refresh_once() -- it may have started just now
        node = current().by_id[id]
    end
    return node
end


-- lives reports whether an epoch of a node is the one that lives: true, false,
-- or nil when what is known does not tell.
function _M.lives(id, epoch)
    local now = current()
    if ngx.now() - now.at > FRESH then
        return nil
    end
    local node = now.by_id[id]
    if node then
        return node.epoch == epoch or nil -- it may have started anew just now
    end
    return nil
end


-- down notes that a node did not take a connection.
function _M.down(host, port)
    state:set("down:" .. host .. ":" .. port, true, DOWN)
end


function _M.is_down(host, port)
    return state:get("down:" .. host .. ":" .. port) ~= nil
end


-- less reports whether a node has less to do than another: fewer tunnels, those
-- that have just been passed to it included, as a share of what it takes.
local function less(a, b)
    local x, y = a.clients + (given[a.id] or 0), b.clients + (given[b.id] or 0)
    if a.capacity > 0 and b.capacity > 0 then
        return x / a.capacity < y / b.capacity
    end
    return x < y
end


-- candidates are the nodes that suits returns true for, and can be reached.
local function candidates(suits)
    local list = {}
    for _, node in ipairs(current().list) do
        if node.host and suits(node)
            and not _M.is_down(node.host, node.port) then
            list[#list + 1] = node
        end
    end
    return list
end


local function any()
    return true
end


local function takes_more(node)
    return not node.draining
        and (node.capacity == 0 or node.clients < node.capacity)
end


local function undrained(node)
    return not node.draining
end


-- another returns some live node that is not at host:port; nil when there is
-- none.
function _M.another(host, port)
    local list = candidates(function(node)
        return node.host ~= host or node.port ~= port
    end)
    return list[random(1, #list > 0 and #list or 1)]
end


-- for_agent returns the less loaded of two random nodes for a new tunnel; nil
-- when no node lives.
function _M.for_agent()
    local list = candidates(takes_more)
    if #list == 0 then
        list = candidates(undrained) -- it says by itself that it is full
    end
    if #list == 0 then
        list = candidates(any)
    end
    if #list == 0 then
        return nil
    end
    local i = random(1, #list)
    local node = list[i]
    if #list > 1 then
        local j = random(1, #list - 1)
        local other = list[j < i and j or j + 1]
        if less(other, node) then
            node = other
        end
    end
    return node
end


-- gave notes that an agent was passed to a node.
function _M.gave(node)
    given[node.id] = (given[node.id] or 0) + 1
end


return _M
