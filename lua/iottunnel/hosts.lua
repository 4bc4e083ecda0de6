-- Addresses of host names, by the system's resolver (/etc/hosts included),
-- which nginx's own does not know. It blocks the worker while it asks: for the
-- start, and for names that are seen for the first time.
local _M = {}

local has_ffi, ffi = pcall(require, "ffi")
local linux = has_ffi and ffi.os == "Linux"

if linux then
    -- Names of our own: other modules may declare the same things.
    ffi.cdef [[
    struct iottunnel_addrinfo {
        int flags, family, socktype, protocol;
        uint32_t addrlen;
        const uint8_t *addr;
        char *canonname;
        struct iottunnel_addrinfo *next;
    };
    int iottunnel_getaddrinfo(const char *node, const char *service,
        const struct iottunnel_addrinfo *hints,
        struct iottunnel_addrinfo **res) __asm__("getaddrinfo");
    void iottunnel_freeaddrinfo(struct iottunnel_addrinfo *res)
        __asm__("freeaddrinfo");
    const char *iottunnel_inet_ntop(int family, const void *src, char *dst,
        uint32_t size) __asm__("inet_ntop");
    ]]
end

local AF_INET, AF_INET6, SOCK_STREAM, TEXT_MAX = 2, 10, 1, 64


-- literal returns an IP address as nginx takes it ("10.0.0.1", "[::1]"); nil
-- when host is not one.
function _M.literal(host)
    if host:find("^%d+%.%d+%.%d+%.%d+$") then
        return host
    end
    local v6 = host:match("^%[([%x:.]+)%]$") or host:match("^[%x:.]*:[%x:.]*$")
    return v6 and "[" .. v6 .. "]" or nil
end


-- split reads "host:port" and "[v6]:port"; nil when it is neither.
function _M.split(hostport)
    local host, port = hostport:match("^(.+):(%d+)$")
    port = tonumber(port)
    if not port or port < 1 or port > 65535
        or host:find(":", 1, true) and host:sub(1, 1) ~= "[" then
        return nil
    end
    return host, port
end


-- address returns the first IP address of a host name, or nil and why not.
function _M.address(host)
    local already = _M.literal(host)
    if already then
        return already
    end
    if not linux then
        return nil, "names are looked up on Linux only: write an IP address"
    end
    local hints = ffi.new("struct iottunnel_addrinfo")
    hints.socktype = SOCK_STREAM
    local found = ffi.new("struct iottunnel_addrinfo *[1]")
    local failed = ffi.C.iottunnel_getaddrinfo(host, nil, hints, found)
    if failed ~= 0 then
        return nil, "no address for this name (getaddrinfo: " .. failed .. ")"
    end
    local text, address = ffi.new("char[?]", TEXT_MAX), nil
    local entry = found[0]
    while entry ~= nil and not address do
        -- Where the address begins in sockaddr_in and in sockaddr_in6.
        local at = entry.family == AF_INET and 4
            or entry.family == AF_INET6 and 8
        if at and ffi.C.iottunnel_inet_ntop(entry.family, entry.addr + at,
            text, TEXT_MAX) ~= nil then
            address = _M.literal(ffi.string(text))
        end
        entry = entry.next
    end
    ffi.C.iottunnel_freeaddrinfo(found[0])
    if not address then
        return nil, "this name has neither an IPv4 nor an IPv6 address"
    end
    return address
end


return _M
