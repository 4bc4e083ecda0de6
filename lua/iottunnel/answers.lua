-- What visitors and agents get where no device answers: package
-- tunnelcore/answers in Lua, with the same bytes. The texts are in pages.lua,
-- which is written by `go test ./lua -update`.
local pages = require "iottunnel.pages"

local find, gsub, lower, match, sub = string.find, string.gsub, string.lower,
    string.match, string.sub
local concat, floor, max, min = table.concat, math.floor, math.max, math.min
local ipairs, tonumber, type = ipairs, tonumber, type
local date = os.date

local _M = {}


-- Ranges of an Accept header, by how exactly they name a form.
local ANY, ANY_SUBTYPE, EXACT = 1, 2, 3

local TEXT, HTML, JSON = "text/plain; charset=utf-8", "text/html; charset=utf-8",
    "application/json"


-- elements lists the parts of s between separators, save those in a quoted
-- string (RFC 9110 section 5.6.4).
local function elements(s, separator)
    local list, start, quoted, i = {}, 1, false, 1
    while i <= #s do
        local c = sub(s, i, i)
        if quoted and c == "\\" then
            i = i + 1
        elseif c == '"' then
            quoted = not quoted
        elseif c == separator and not quoted then
            list[#list + 1] = sub(s, start, i - 1)
            start = i + 1
        end
        i = i + 1
    end
    list[#list + 1] = sub(s, start)
    return list
end


-- parse_weight reads a qvalue in thousandths; also one with more decimals, or
-- without the zero, which clients in the field do send.
local function parse_weight(s)
    local whole, decimals = match(s, "^([01]?)%.?(%d*)$")
    if not whole or whole == "" and decimals == ""
        or whole ~= "" and decimals ~= "" and sub(s, 2, 2) ~= "."
        or whole == "" and sub(s, 1, 1) ~= "." then
        return nil
    end
    local weight = tonumber(sub(decimals .. "000", 1, 3))
    if whole == "1" then
        return not find(sub(decimals, 1, 3), "[1-9]") and 1000 or nil
    end
    return weight
end


-- parse_range reads one element of an Accept header; nil when it is malformed.
local function parse_range(s)
    local parts = elements(s, ";")
    local range = match(parts[1], "^[ \t]*(.-)[ \t]*$")
    if range == "*" then -- some old clients send it
        range = "*/*"
    end
    local kind, subkind = match(range, "^([^/]+)/(.+)$")
    if not kind or find(range, '[ \t"]') or kind == "*" and subkind ~= "*" then
        return nil
    end
    for i = 2, #parts do
        local part = match(parts[i], "^[ \t]*(.-)[ \t]*$")
        local name, value = match(part, "^([^=]*)=?(.*)$")
        if lower(match(name, "^(.-)[ \t]*$")) == "q" then
            local weight = parse_weight(match(value, "^[ \t]*(.*)$"))
            return weight and lower(kind), lower(subkind), weight
        end
    end
    return lower(kind), lower(subkind), 1000
end


-- weigh returns weight and precision of a media type: the most precise range
-- that covers it decides, and of equally precise ones the heaviest.
local function weigh(ranges, kind, subkind)
    local weight, precision = 0, 0
    for _, r in ipairs(ranges) do
        local p
        if r[1] == "*" and r[2] == "*" then
            p = ANY
        elseif r[1] == kind and r[2] == "*" then
            p = ANY_SUBTYPE
        elseif r[1] == kind and r[2] == subkind then
            p = EXACT
        end
        if p and (p > precision or p == precision and r[3] > weight) then
            weight, precision = r[3], p
        end
    end
    return weight, precision
end


-- form chooses the content type of an answer by an Accept header (a string, a
-- list of strings, or nil): the heaviest form wins, of equal ones the one that
-- is named more precisely, then the page before JSON before text. Who takes
-- anything gets a line of text.
function _M.form(accept)
    local ranges = {}
    if type(accept) == "string" then
        accept = { accept }
    end
    for _, line in ipairs(accept or {}) do
        for _, element in ipairs(elements(line, ",")) do
            local kind, subkind, weight = parse_range(element)
            if kind then
                ranges[#ranges + 1] = { kind, subkind, weight }
            end
        end
    end
    local chosen, best, best_precision = TEXT, 0, 0
    for _, offer in ipairs {
        { HTML, "text", "html" }, { JSON, "application", "json" },
        { TEXT, "text", "plain" },
    } do
        local w, p = weigh(ranges, offer[2], offer[3])
        if w > best or w == best and w > 0 and p > best_precision
            -- Ranges with a wildcard do not tell the forms apart; text then
            -- wins.
            or w == best and p == best_precision and offer[1] == TEXT
            and p < EXACT then
            chosen, best, best_precision = offer[1], w, p
        end
    end
    return chosen
end


local MONTHS = { "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep",
    "Oct", "Nov", "Dec" }
local ESCAPES = { ["&"] = "&amp;", ["'"] = "&#39;", ["<"] = "&lt;",
    [">"] = "&gt;", ['"'] = "&#34;" }


local function escape(s)
    return (gsub(s, "[&'<>\"]", ESCAPES))
end


-- fill replaces the one variable of a fragment.
local function fill(fragment, value)
    return (gsub(fragment, "{{}}", function() return value end, 1))
end


-- rfc3339 writes seconds of Unix time for programs.
local function rfc3339(seconds)
    return date("!%Y-%m-%dT%H:%M:%SZ", seconds)
end


local function for_people(seconds)
    local t = date("!*t", seconds)
    return ("%d %s %d, %02d:%02d UTC"):format(t.day, MONTHS[t.month], t.year,
        t.hour, t.min)
end


local function html(a, entry, safe)
    local refresh = entry.refresh
    if refresh > 0 and a.retry_after then
        refresh = min(max(a.retry_after, pages.refresh_min), pages.refresh_max)
    end
    local v = {
        code = escape(a.code), status = entry.status, title = escape(entry.title),
        text = escape(entry.text), next = escape(entry.next), fault = entry.fault,
        refresh = "", again = "", seen = "", detail = "",
    }
    if refresh > 0 and safe then
        v.refresh = fill(pages.fragments.refresh, refresh)
        v.next = fill(pages.fragments.refresh_sentence, refresh)
        v.again = pages.fragments.again
    end
    if a.last_seen then
        v.seen = fill(pages.fragments.seen, '<time datetime="'
            .. rfc3339(a.last_seen) .. '">' .. for_people(a.last_seen) .. "</time>")
    end
    if a.message then
        v.detail = fill(pages.fragments.detail, escape(a.message))
    end
    return (gsub(pages.page, "{{(%a+)}}", v))
end


local function json(a, entry)
    local parts = { '{"error":"', a.code, '","message":"',
        (gsub(a.message or entry.message, '[\\"]', "\\%0")), '"' }
    if a.last_seen then
        parts[#parts + 1] = ',"last_seen":"' .. rfc3339(a.last_seen) .. '"'
    end
    parts[#parts + 1] = "}\n"
    return concat(parts)
end


local function text(a, entry)
    local seen = ""
    if a.last_seen then
        seen = " (last seen " .. rfc3339(a.last_seen) .. ")"
    end
    return a.code .. ": " .. (a.message or entry.message) .. seen .. "\n"
end


-- render returns status, headers (a table by name) and body of an answer: {code
-- = one of the codes, message = a sentence of ours in place of the code's own,
-- retry_after = whole seconds, last_seen = Unix seconds}. accept is the
-- visitor's Accept, method the request's. For agents accept is false: they get
-- JSON.
function _M.render(a, accept, method)
    local entry = pages.codes[a.code]
    local form = accept == false and JSON or _M.form(accept)
    local body
    if form == HTML then
        body = html(a, entry, method == "GET" or method == "HEAD")
    elseif form == JSON then
        body = json(a, entry)
    else
        body = text(a, entry)
    end
    local headers = {
        ["Content-Type"] = form,
        ["Content-Length"] = #body,
        ["Content-Security-Policy"] = pages.content_security_policy,
        ["X-Content-Type-Options"] = "nosniff",
        ["X-Robots-Tag"] = "noindex",
        ["Cache-Control"] = "no-store",
        ["Iottunnel-Error"] = a.code,
    }
    if accept ~= false then
        headers["Vary"] = "Accept"
    end
    if a.retry_after then
        headers["Retry-After"] = floor(a.retry_after)
    end
    return entry.status, headers, body
end


-- send writes an answer and ends the request; see render.
function _M.send(a, accept)
    local status, headers, body = _M.render(a, accept, ngx.req.get_method())
    ngx.status = status
    for name, value in pairs(headers) do
        ngx.header[name] = value
    end
    if ngx.req.get_method() ~= "HEAD" then
        ngx.print(body)
    else
        ngx.send_headers()
    end
    return ngx.exit(ngx.HTTP_OK) -- the status has been sent
end


return _M
