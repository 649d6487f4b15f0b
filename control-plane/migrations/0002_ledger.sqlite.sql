CREATE TRIGGER transactions_balanced BEFORE INSERT ON transactions
WHEN (SELECT COALESCE(SUM(amount_nanos), 1) FROM entries WHERE tx = NEW.id) <> 0
BEGIN SELECT RAISE(ABORT, 'entries of a transaction must sum to zero'); END;
CREATE TRIGGER entries_open BEFORE INSERT ON entries
WHEN EXISTS (SELECT 1 FROM transactions WHERE id = NEW.tx)
BEGIN SELECT RAISE(ABORT, 'the transaction is closed'); END;
CREATE TRIGGER transactions_no_update BEFORE UPDATE ON transactions BEGIN SELECT RAISE(ABORT, 'transactions is append-only'); END;
CREATE TRIGGER transactions_no_delete BEFORE DELETE ON transactions BEGIN SELECT RAISE(ABORT, 'transactions is append-only'); END;
CREATE TRIGGER entries_no_update BEFORE UPDATE ON entries BEGIN SELECT RAISE(ABORT, 'entries is append-only'); END;
CREATE TRIGGER entries_no_delete BEFORE DELETE ON entries BEGIN SELECT RAISE(ABORT, 'entries is append-only'); END;
CREATE TRIGGER price_versions_no_update BEFORE UPDATE ON price_versions BEGIN SELECT RAISE(ABORT, 'price_versions is append-only'); END;
CREATE TRIGGER price_versions_no_delete BEFORE DELETE ON price_versions BEGIN SELECT RAISE(ABORT, 'price_versions is append-only'); END;
