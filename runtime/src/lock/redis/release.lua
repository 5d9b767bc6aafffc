-- Deletes each of KEYS that still has its token. ARGV: one token per key. Answers how many.
local deleted = 0
for i, key in ipairs(KEYS) do
  if redis.pcall('GET', key) == ARGV[i] then
    deleted = deleted + redis.call('DEL', key)
  end
end
return deleted
