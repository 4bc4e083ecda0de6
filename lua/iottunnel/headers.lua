-- What of a visitor's headers reaches a node. A node believes what a router
-- says of a visitor, so a visitor must not speak in the router's name.
local byte, find, gmatch, gsub, lower, sub = string.byte, string.find,
    string.gmatch, string.gsub, string.lower, string.sub
local pairs, type = pairs, type

local _M = {}

-- Headers by which proxies and authenticators tell a service who the visitor
-- is.
local SPEAKS_FOR = {
    ["forwarded"] = true, ["x-real-ip"] = true, ["remote-user"] = true,
    ["remote-groups"] = true, ["remote-name"] = true, ["remote-email"] = true,
}

-- Options of Connection that are no headers, or that nginx looks after.
local NO_HEADER = { ["close"] = true, ["keep-alive"] = true, ["upgrade"] = true,
    ["te"] = true }


-- ours reports whether a name, in lower case, is the edge's alone.
local function ours(name)
    return sub(name, 1, 10) == "iottunnel-"
end


local function speaks_for(name)
    return SPEAKS_FOR[name] or sub(name, 1, 12) == "x-forwarded-"
end


-- reserved reports whether a header says who the visitor is: it is not dropped
-- because a visitor lists it as hop-by-hop.
local function reserved(name, keep)
    return ours(name) or keep[name] or speaks_for(name)
        or name == "authorization" or name == "host" or name == "cookie"
        or name == "content-length" or name == "transfer-encoding"
end


-- drops returns the names (as sent) that must not reach a node. headers are
-- those of the request as sent, keep is a set of names in lower case that pass.
function _M.drops(headers, keep)
    local list, n = nil, 0
    for name in pairs(headers) do
        local c = byte(name)
        -- F, I, R, X in either case: what must go begins with one of them.
        if c == 120 or c == 88 or c == 105 or c == 73 or c == 114 or c == 82
            or c == 102 or c == 70 then
            -- Some services take _ for -.
            local low = gsub(lower(name), "_", "-")
            if ours(low) or speaks_for(low) and not keep[low] then
                list, n = list or {}, n + 1
                list[n] = name
            end
        end
    end
    return list
end


-- hop_by_hop returns the headers that a Connection header (a string or a list
-- of them) names (RFC 9110 section 7.6.1).
function _M.hop_by_hop(connection, keep)
    local list = {}
    for _, line in pairs(type(connection) == "table" and connection
        or { connection }) do
        for option in gmatch(line, "[^,%s]+") do
            option = lower(option)
            if not NO_HEADER[option] and not reserved(option, keep) then
                list[#list + 1] = option
            end
        end
    end
    return list
end


-- clean takes from the request what its visitor must not say.
function _M.clean(keep)
    local headers = ngx.req.get_headers(0, true)
    local list = _M.drops(headers, keep)
    if list then
        for i = 1, #list do
            ngx.req.clear_header(list[i])
        end
    end
    local connection = ngx.var.http_connection
    if connection and connection ~= "keep-alive" and connection ~= "Upgrade"
        and find(connection, "%a") then
        local lines = ngx.req.get_headers(0).connection
        for _, name in pairs(_M.hop_by_hop(lines, keep)) do
            ngx.req.clear_header(name)
        end
    end
end


return _M
