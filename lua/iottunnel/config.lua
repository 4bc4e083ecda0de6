-- What `setup` takes, checked: what can never work is refused at the start,
-- with the name of the setting.
local names = require "iottunnel.names"

local _M = {}

local DEFAULT_PORT = 6379

-- Defaults of the settings; see README.md for what they mean.
local DEFAULTS = {
    prefix = "iottunnel:",
    wait_s = 5,
    redis_timeout_ms = 500,
    redis_connections = 32,
    redis_tls_verify = true,
}

local KINDS = {
    redis = { string = true, table = true },
    domain = { string = true },
    prefix = { string = true },
    username = { string = true },
    password = { string = true },
    password_file = { string = true },
    redis_tls_name = { string = true },
    redis_tls_verify = { boolean = true },
    redis_timeout_ms = { number = true },
    redis_connections = { number = true },
    wait_s = { number = true },
    keep_headers = { table = true },
    drop_headers = { table = true },
    before = { ["function"] = true },
}


local function fail(setting, why)
    error("iottunnel: setup: " .. setting .. ": " .. why, 0)
end


local function unescape(s)
    return (s:gsub("%%(%x%x)", function(h) return string.char(tonumber(h, 16)) end))
end


-- parse_url reads redis://, rediss:// and unix:// as edges do.
local function parse_url(url)
    local scheme, rest = url:match("^(%a+)://(.*)$")
    local server = {}
    if scheme == "unix" then
        local login, path = rest:match("^([^/]*)(/[^?]+)")
        if not path then
            fail("redis", "a socket is unix:///path/to/socket")
        end
        local db = rest:match("[?&]db=(%d+)")
        server.socket, server.db = "unix:" .. unescape(path), tonumber(db)
        rest = login:match("^(.*)@$")
        if login ~= "" and not rest then
            fail("redis", "a socket is unix:///path/to/socket")
        end
    elseif scheme == "redis" or scheme == "rediss" then
        server.tls = scheme == "rediss"
        local login, address = rest:match("^(.*)@([^@]*)$")
        address = address or rest
        local host, db = address:match("^([^/?]+)/?(%d*)$")
        local bare, port = (host or ""):match("^(.-):(%d+)$")
        if bare and (not bare:find(":", 1, true) or bare:sub(1, 1) == "[") then
            server.host, server.port = bare, tonumber(port)
        else
            server.host, server.port = host, DEFAULT_PORT
        end
        if not host or not server.host:find("^[%w%.:%[%]_-]+$")
            or server.port < 1 or server.port > 65535 then
            fail("redis", "an address is redis://host:port/db, "
                .. "or rediss:// with TLS")
        end
        server.db, rest = tonumber(db), login
    else
        fail("redis", "an address begins with redis://, rediss:// or unix://")
    end
    if rest then
        local user, password = rest:match("^([^:]*):?(.*)$")
        server.username = user ~= "" and unescape(user) or nil
        server.password = password ~= "" and unescape(password) or nil
    end
    return server
end


local function read_password(path)
    local file, why = io.open(path, "r")
    if not file then
        fail("password_file", why .. "; it is read by the master process")
    end
    local all = file:read("*a") or ""
    file:close()
    local password = all:match("^(.-)[\r\n]*$")
    if password == "" then
        fail("password_file", path .. " is empty")
    end
    return password
end


local function check_kinds(options)
    for name, value in pairs(options) do
        local kinds = KINDS[name]
        if not kinds then
            fail(tostring(name), "there is no such setting")
        end
        if not kinds[type(value)] then
            fail(name, "a " .. type(value) .. " is not what belongs here")
        end
    end
    for name, least in pairs { wait_s = 0, redis_timeout_ms = 1,
        redis_connections = 1 } do
        local value = options[name]
        if value and (value < least or value > 60000) then
            fail(name, "from " .. least .. " to 60000")
        end
    end
end


-- check returns the settings with their defaults, or raises an error that names
-- the one to mend.
function _M.check(options)
    if type(options) ~= "table" then
        fail("(settings)", "call setup{ redis = ..., domain = ... }")
    end
    check_kinds(options)
    local c = {}
    for name, value in pairs(DEFAULTS) do
        c[name] = value
    end
    for name, value in pairs(options) do
        c[name] = value
    end
    if not c.domain then
        fail("domain", "the devices' domain is missing, as in "
            .. '"devices.example.net"')
    end
    c.domain = names.normal(c.domain)
    if not c.domain:find("^[a-z0-9][a-z0-9.-]*$") then
        fail("domain", '"' .. c.domain .. '" is not a domain name: no *. in front')
    end
    if not c.redis then
        fail("redis", 'an address is missing, as in "redis://127.0.0.1:6379/0"')
    end
    if c.password and c.password_file then
        fail("password_file", "password is set, too: one of the two")
    end
    if c.password_file then
        c.password = read_password(c.password_file)
    end
    c.servers = {}
    for i, url in ipairs(type(c.redis) == "table" and c.redis or { c.redis }) do
        local server = parse_url(type(url) == "string" and url or "")
        server.username = server.username or c.username
        server.password = server.password or c.password
        if server.username and not server.password then
            fail("username", "there is a user name, but no password")
        end
        server.name = server.socket or server.host .. ":" .. server.port
        server.pool = "iottunnel:" .. i .. ":" .. server.name
        c.servers[i] = server
    end
    if #c.servers == 0 then
        fail("redis", "the list of addresses is empty")
    end
    c.keep = {}
    for _, header in ipairs(c.keep_headers or {}) do
        c.keep[tostring(header):lower()] = true
    end
    return c
end


return _M
