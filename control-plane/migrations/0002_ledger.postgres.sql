CREATE FUNCTION transactions_balanced() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN
    IF (SELECT COALESCE(SUM(amount_nanos), 1) FROM entries WHERE tx = NEW.id) <> 0 THEN
        RAISE EXCEPTION 'entries of a transaction must sum to zero';
    END IF;
    RETURN NEW;
END $$;
CREATE FUNCTION entries_open() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN
    IF EXISTS (SELECT 1 FROM transactions WHERE id = NEW.tx) THEN
        RAISE EXCEPTION 'the transaction is closed';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER transactions_balanced BEFORE INSERT ON transactions FOR EACH ROW EXECUTE FUNCTION transactions_balanced();
CREATE TRIGGER entries_open BEFORE INSERT ON entries FOR EACH ROW EXECUTE FUNCTION entries_open();
CREATE TRIGGER transactions_append_only BEFORE UPDATE OR DELETE ON transactions FOR EACH ROW EXECUTE FUNCTION append_only();
CREATE TRIGGER entries_append_only BEFORE UPDATE OR DELETE ON entries FOR EACH ROW EXECUTE FUNCTION append_only();
CREATE TRIGGER price_versions_append_only BEFORE UPDATE OR DELETE ON price_versions FOR EACH ROW EXECUTE FUNCTION append_only();
