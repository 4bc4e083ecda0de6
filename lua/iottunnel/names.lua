-- What is a label and a device's hostname: package tunnelcore/names in Lua.
-- Both decide every case of tunnelcore/names/testdata alike.
local find, lower, match, sub = string.find, string.lower, string.match, string.sub
local tonumber = tonumber

local _M = {}

local MAX_LABEL = 63 -- of a DNS label (RFC 1035 section 2.3.4)


-- normal takes a Host's port and final dot away and lowers its ASCII letters.
-- What is not a name with an optional port keeps its odd characters, so that it
-- equals no domain.
function _M.normal(host)
    local name = match(host, "^(.*):%d*$")
    if name and (sub(name, -1) == "]" or not find(name, ":", 1, true)) then
        host = name
    end
    if sub(host, -1) == "." and sub(host, -2) ~= ".."
        and not find(host, ":", 1, true) then
        host = sub(host, 1, -2)
    end
    return lower(host)
end


-- valid reports whether s may be a label or a device id: letters a-z, digits
-- and single hyphens inside, at most 63 characters. Nothing else gets into a
-- key of Redis.
function _M.valid(s)
    return #s <= MAX_LABEL
        and find(s, "^[a-z0-9][a-z0-9-]*$") ~= nil
        and sub(s, -1) ~= "-"
        and not find(s, "--", 1, true)
end


-- split returns the first part of a Host in its normal form, and whether the
-- rest of it is the domain.
local function split(host, domain)
    local first, rest = match(_M.normal(host), "^([^.]*)%.(.+)$")
    return first, rest == domain
end


-- parse returns the label and the port (0: the bare hostname) that a Host names
-- directly under the domain; nil for every other Host, and for labels that are
-- never leased.
function _M.parse(host, domain)
    local first, ours = split(host, domain)
    if not ours or #first > MAX_LABEL or sub(first, 1, 4) == "xn--" then
        return nil
    end
    local label, port = first, 0
    local at = find(first, "--", 1, true)
    if at then
        label = sub(first, 1, at - 1)
        -- One spelling per port: no 080.
        local digits = match(sub(first, at + 2), "^[1-9]%d*$")
        if not digits or #digits > 5 or tonumber(digits) > 65535 then
            return nil
        end
        port = tonumber(digits)
    end
    if not _M.valid(label) then
        return nil
    end
    return label, port
end


-- directly_under reports whether a Host is the domain with one more label,
-- leased or not.
function _M.directly_under(host, domain)
    local first, ours = split(host, domain)
    return ours and first ~= ""
end


-- under reports whether a Host lies under the domain, however deep: agents are
-- never served there.
function _M.under(host, domain)
    local tail = "." .. domain
    return sub(_M.normal(host), -#tail) == tail
end


return _M
